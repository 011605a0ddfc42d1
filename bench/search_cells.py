"""How many cells does the search need, beside one factor at a time, ddmin and the full grid?

python bench/search_cells.py

Truth tables of n factors at two levels, 50 seeded spaces each: one cause of one level, one cause of two interacting
levels, two separate causes of one level. All four methods know the two end points, and these are counted. "right":
every cause and every cure was found, and each has a cell of its own that proves it. One factor at a time starts from
the reference and from the failing cell. ddmin is Zeller and Hildebrandt's (2002): it ends with one cause and no cure.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import chain, combinations
from pathlib import Path
from statistics import median

from nangrid.diagnosis.minimal_sets import Changes, search

SPACES = 50
FACTORS = (5, 6, 7)
KINDS = {"one cause": 1, "two interacting": 2, "two separate": 2}
BOUNDS = {
    "one cause": {5: 8, 6: 9, 7: 10},
    "two interacting": {5: 15, 6: 16, 7: 20},
    "two separate": {5: 9, 6: 12, 7: 12},
}
RESULT = Path(__file__).parent / "results" / "search_cells.md"

Sets = set[Changes]


class Event:
    """A truth table that counts the cells that were asked for."""

    def __init__(self, kind: str, n: int, seed: int) -> None:
        chosen = random.Random(f"{kind} {n} {seed}").sample(range(n), KINDS[kind])
        self.n = n
        self.causes = {frozenset(chosen)} if kind == "two interacting" else {frozenset({i}) for i in chosen}
        self.everything = frozenset(range(n))
        self.asked = {frozenset[int](), self.everything}

    def __call__(self, changes: Changes) -> bool:
        self.asked.add(changes)
        return any(cause <= changes for cause in self.causes)

    def cures(self) -> Sets:
        hitting = [s for s in _subsets(self.n) if all(s & cause for cause in self.causes)]
        return {s for s in hitting if not any(other < s for other in hitting)}

    def certified(self, causes: Sets, cures: Sets) -> bool:
        """Whether all was found, each with a cell that shows it."""
        right = causes == self.causes and cures == self.cures()
        return right and {*causes, *(self.everything - cure for cure in cures)} <= self.asked


def ours(event: Event) -> tuple[Sets, Sets]:
    found = search(event.n, event)
    return set(found.causes), set(found.cures)


def one_factor_at_a_time(event: Event) -> tuple[Sets, Sets]:
    singles = [frozenset({i}) for i in range(event.n)]
    return {s for s in singles if event(s)}, {s for s in singles if not event(event.everything - s)}


def ddmin(event: Event) -> tuple[Sets, Sets]:
    """One minimal set of changes that is enough."""
    left, parts = sorted(event.everything), 2
    while len(left) > 1:
        size = -(-len(left) // parts)
        chunks = [frozenset(left[i : i + size]) for i in range(0, len(left), size)]
        rests = [frozenset(left) - chunk for chunk in chunks]
        if smaller := next((c for c in chunks if event(c)), None):
            left, parts = sorted(smaller), 2
        elif parts > 2 and (smaller := next((r for r in rests if event(r)), None)):
            left, parts = sorted(smaller), max(parts - 1, 2)
        elif parts >= len(left):
            break
        else:
            parts = min(2 * parts, len(left))
    return {frozenset(left)}, set()


def full_grid(event: Event) -> tuple[Sets, Sets]:
    enough = {s for s in _subsets(event.n) if event(s)}
    causes = {s for s in enough if not any(other < s for other in enough)}
    return causes, event.cures()


METHODS: dict[str, Callable[[Event], tuple[Sets, Sets]]] = {
    "nangrid": ours,
    "one factor at a time": one_factor_at_a_time,
    "ddmin": ddmin,
    "full grid": full_grid,
}


def _subsets(n: int) -> list[Changes]:
    return [frozenset(s) for s in chain.from_iterable(combinations(range(n), k) for k in range(n + 1))]


def main() -> None:
    lines = [
        f"`python bench/search_cells.py`: median cells run, of {SPACES} seeded spaces each (most; share in which all",
        "causes and cures were found and proved), both end points counted.",
        "",
        f"| factors | space | at most | {' | '.join(METHODS)} |",
        f"| ---: | --- | ---: | {' | '.join('---:' for _ in METHODS)} |",
    ]
    for n in FACTORS:
        for kind in KINDS:
            shown = []
            for method in METHODS.values():
                cells, right = [], 0
                for seed in range(SPACES):
                    event = Event(kind, n, seed)
                    right += event.certified(*method(event))
                    cells.append(len(event.asked))
                shown.append(f"{median(cells):g} ({max(cells)}; {right / SPACES:.0%})")
            lines.append(f"| {n} | {kind} | {BOUNDS[kind][n]} | {' | '.join(shown)} |")
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
