"""How many cells does the search need, beside the textbook's?

python bench/search_cells.py

Truth tables of n changes between a failing and a training cell, 30 seeded spaces per row, with one to four causes of
one or more changes. All methods know the two end points, and these are counted. "found": the share in which every cause
and every cure was found, nothing else, and each has a cell that proves it. QuickXplain, ProbDD and ddmin end with one
cause and no cure; one factor at a time starts from both end points. nangrid runs up to four further cells to test that
the event is monotone; its rows do not count them. `seconds` is the search's time per space, without any cell.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from statistics import mean

from search_methods import METHODS, Table

SPACES = 30
CHANGES = (5, 6, 7, 8, 10, 15, 20, 30)
KINDS = {
    "1 cause of 1": [1],
    "1 cause of 2": [2],
    "1 cause of 3": [3],
    "1 cause of 4": [4],
    "2 causes of 1": [1, 1],
    "2 causes of 2": [2, 2],
    "causes of 1, 2": [1, 2],
    "causes of 1, 2, 3": [1, 2, 3],
    "4 causes of 2": [2, 2, 2, 2],
    "causes of 1, 2, 2, 3": [1, 2, 2, 3],
    "1 cause of half": [],
}
RESULT = Path(__file__).parent / "results" / "search_cells.md"


def space(kind: str, n: int, seed: int) -> list[int]:
    """Causes of these sizes, none inside another."""
    draw = random.Random(f"{kind} {n} {seed}")
    while True:
        causes = [sum(1 << i for i in draw.sample(range(n), size)) for size in KINDS[kind] or [n // 2]]
        if all(a == b or a & b not in (a, b) for a in causes for b in causes) and len(set(causes)) == len(causes):
            return causes


def row(kind: str, n: int) -> tuple[dict[str, float], dict[str, float], float]:
    """Per method the mean number of cells and the share of spaces solved; the seconds of our search per space."""
    cells, solved, seconds = {}, {}, 0.0
    for name, method in METHODS.items():
        tables = [Table(space(kind, n, seed), n) for seed in range(SPACES)]
        start = time.perf_counter()
        found = [method(table) for table in tables]
        seconds = (time.perf_counter() - start) / SPACES if name == "nangrid" else seconds
        cells[name] = mean(len(table.asked) for table in tables)
        solved[name] = mean(table.certified(result) for table, result in zip(tables, found, strict=True))
    return cells, solved, seconds


def main() -> None:
    lines = [
        f"`python bench/search_cells.py`: mean cells of {SPACES} seeded spaces (share found), both end points counted.",
        "`over`: cells of nangrid above the better of MARCO and dualize & advance.",
        "Which of the two is better depends on how many changes a cause takes: MARCO where it takes most, dualize and",
        "advance where it takes few. nangrid learns it on the way, from a prior that trades the two kinds of rows.",
        "",
        f"| changes | space | over | ms | {' | '.join(METHODS)} |",
        f"| ---: | --- | ---: | ---: | {' | '.join('---:' for _ in METHODS)} |",
    ]
    for n in CHANGES:
        for kind, sizes in KINDS.items():
            if max(sizes, default=0) >= n:
                continue
            cells, solved, seconds = row(kind, n)
            over = cells["nangrid"] - min(cells["MARCO"], cells["dualize & advance"])
            shown = " | ".join(f"{cells[name]:.1f} ({solved[name]:.0%})" for name in METHODS)
            lines.append(f"| {n} | {kind} | {over:+.1f} | {1e3 * seconds:.1f} | {shown} |")
            print(lines[-1], flush=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
