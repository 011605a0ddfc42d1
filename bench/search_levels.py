"""Does `diagnose` find causes among the levels between the two sides, beside BugDoc's decision trees?

python bench/search_levels.py  (bench/rivals.py says what to install)

Seeded truth tables of 3 to 5 factors with 3 to 5 levels each and up to three causes of one or two levels; a cell fails
if it has all levels of a cause, never by itself. `diagnose` is given a failing cell, the reference and the levels
between, and confirms each answer with three seeds. BugDoc (Lourenco et al. 2020) starts from its own covering array, as
its `run` does, and may run 300 cells; every rule that it believes decisive for bad is taken as its claim. "found all":
the claimed rules fail in exactly the cells that fail. "false": a table with a rule that holds a cell that trains.
"""

from __future__ import annotations

import random
from pathlib import Path
from statistics import mean

from rivals import Levels, Rule, bugdoc, judge
from truth_oracle import diagnose

TABLES, MOST = 20, 300
RESULT = Path(__file__).parent / "results" / "search_levels.md"


def table(number: int) -> tuple[list[int], list[Levels]]:
    """Levels besides the reference's per factor, and the causes, of which the first is in the failing cell."""
    draw = random.Random(number)
    most = draw.choice([2, 3, 4])
    factors = draw.choice([3, 4, 5])
    first = frozenset(f"f{factor}=1" for factor in draw.sample(range(factors), draw.choice([1, 2])))
    sizes = [draw.choice([1, 2]) for _ in range(draw.choice([1, 2]))]
    more = {frozenset(f"f{f}={draw.randint(1, most)}" for f in draw.sample(range(factors), size)) for size in sizes}
    causes = {first, *more}
    return [most] * factors, [cause for cause in causes if not any(other < cause for other in causes)]


def ours(levels: list[int], causes: list[Levels]) -> tuple[list[Rule], int]:
    """Rules and runs of `diagnose`."""
    found = diagnose(lambda cell, seed: any(c <= cell for c in causes), [most - 1 for most in levels], 3, MOST)
    claims = [frozenset(f"f{i}=1" for i in cause) for cause in found.causes.causes]
    if found.between is not None:
        claims += [frozenset(o for level in cause.levels for o in level) for cause in found.between.causes]
    return [claim.__le__ for claim in claims], found.runs


def end_points_alone(levels: list[int], causes: list[Levels]) -> tuple[list[Rule], int]:
    """The same without the levels between."""
    found = diagnose(lambda cell, seed: any(c <= cell for c in causes), [0] * len(levels), 3, MOST)
    return [frozenset(f"f{i}=1" for i in cause).__le__ for cause in found.causes.causes], found.runs


def of_bugdoc(levels: list[int], causes: list[Levels]) -> tuple[list[Rule], int]:
    """Rules and runs of BugDoc's debugging decision trees."""
    return bugdoc(lambda cell: any(cause <= cell for cause in causes), levels, MOST)


def main() -> None:
    methods = {"nangrid": ours, "nangrid, two levels": end_points_alone, "BugDoc": of_bugdoc}
    lines = [
        f"`python bench/search_levels.py`: {TABLES} truth tables; runs of nangrid hold three seeds per answer.",
        "",
        "| method | found all | false | runs, mean (most) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, method in methods.items():
        judged, runs = [], []
        for number in range(TABLES):
            rules, cost = method(*table(number))
            judged.append(judge(rules, *table(number)))
            runs.append(cost)
        found, false = (mean(column) for column in zip(*judged, strict=True))
        lines.append(f"| {name} | {found:.0%} | {false:.0%} | {mean(runs):.0f} ({max(runs)}) |")
        print(lines[-1], flush=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
