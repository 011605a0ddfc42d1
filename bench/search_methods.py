"""The searches that bench/search_cells.py compares, each as its authors describe it.

A set of changes is the bits of an integer. Each method takes a truth table and returns the causes and cures it found.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from nangrid.diagnosis.minimal_sets import bits, hitting_sets, search, to_point

Found = tuple[set[int], set[int]]


class Table:
    """The causes of an event among n changes; counts the cells that were asked for, both end points included."""

    def __init__(self, causes: list[int], n: int) -> None:
        self.causes = set(causes)
        self.n = n
        self.full = (1 << n) - 1
        self.asked = {0, self.full}

    def __call__(self, point: int) -> bool:
        """Whether the cell with these changes fails."""
        self.asked.add(point)
        return any(cause & point == cause for cause in self.causes)

    def certified(self, found: Found) -> bool:
        """Whether all causes and cures were found and nothing else, each with a cell that shows it."""
        right = found == (self.causes, set(hitting_sets(sorted(self.causes))))
        return right and {*found[0], *(self.full & ~cure for cure in found[1])} <= self.asked


def ours(table: Table) -> Found:
    """The search of nangrid, without its tests of monotony."""
    found = search(table.n, lambda changes: table(to_point(changes)))
    return set(map(to_point, found.causes)), set(map(to_point, found.cures))


def marco(table: Table) -> Found:
    """Liffiton et al. 2016, with maximal seeds: a cause is shrunk by dropping one change at a time."""
    return _enumerate(table, _shrink_linearly)


def dualize_and_advance(table: Table) -> Found:
    """Gunopulos et al. 1997, with shrinks by plain bisection."""
    return _enumerate(table, _shrink_by_halves)


def _enumerate(table: Table, shrink: Callable[[int, Callable[[int], bool]], int]) -> Found:
    yes, no, cures = [table.full], [0], set[int]()

    def ask(point: int) -> bool:
        if any(smaller & point == smaller for smaller in yes):
            return True
        if any(larger & point == point for larger in no):
            return False
        (yes if table(point) else no).append(point)
        return point in yes

    causes: list[int] = []
    while left := [hitting for hitting in hitting_sets(causes) if hitting not in cures]:
        hitting = min(left, key=lambda point: (point.bit_count(), point))
        if ask(table.full & ~hitting):
            causes.append(shrink(table.full & ~hitting, ask))
        else:
            cures.add(hitting)
    return set(causes), cures


def _shrink_linearly(point: int, ask: Callable[[int], bool]) -> int:
    for change in bits(point):
        if ask(point & ~change):
            point &= ~change
    return point


def _shrink_by_halves(point: int, ask: Callable[[int], bool]) -> int:
    needed, rest = 0, list(bits(point))
    while not ask(needed):
        low, high = 0, len(rest)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if ask(needed | sum(rest[middle:])) else (low, middle)
        needed |= rest[low]
        rest = rest[low + 1 :]
    return needed


def quickxplain(table: Table) -> Found:
    """Junker 2004: one minimal cause."""

    def explain(background: int, is_new: bool, changes: list[int]) -> int:
        if is_new and table(background):
            return 0
        if len(changes) == 1:
            return changes[0]
        first, second = changes[: len(changes) // 2], changes[len(changes) // 2 :]
        right = explain(background | sum(first), True, second)
        return explain(background | right, right > 0, first) | right

    return {explain(0, False, list(bits(table.full)))}, set()


def probdd(table: Table) -> Found:
    """Wang et al. 2021: one cause; the chance that each change is needed starts at 0.1."""
    chances, kept = {change: 0.1 for change in bits(table.full)}, table.full
    while open_ := sorted((change for change in bits(kept) if chances[change] < 1), key=chances.__getitem__):
        kept_chance, best, dropped = 1.0, 0.0, 0
        for count, change in enumerate(open_, 1):
            kept_chance *= 1 - chances[change]
            if count * kept_chance > best:
                best, dropped = count * kept_chance, count
        tried = open_[:dropped]
        if table(kept & ~sum(tried)):
            kept &= ~sum(tried)
        else:
            failed = 1 - math.prod(1 - chances[change] for change in tried)
            chances |= {change: 1.0 if len(tried) == 1 else min(1.0, chances[change] / failed) for change in tried}
    return {kept}, set()


def ddmin(table: Table) -> Found:
    """Zeller and Hildebrandt 2002: one minimal cause."""
    left, parts = list(bits(table.full)), 2
    while len(left) > 1:
        size = -(-len(left) // parts)
        chunks = [left[i : i + size] for i in range(0, len(left), size)]
        rests = [[change for change in left if change not in chunk] for chunk in chunks]
        if smaller := next((chunk for chunk in chunks if table(sum(chunk))), None):
            left, parts = smaller, 2
        elif parts > 2 and (smaller := next((rest for rest in rests if table(sum(rest))), None)):
            left, parts = smaller, max(parts - 1, 2)
        elif parts >= len(left):
            break
        else:
            parts = min(2 * parts, len(left))
    return {sum(left)}, set()


def one_factor_at_a_time(table: Table) -> Found:
    """Each change alone, and all but each."""
    singles = list(bits(table.full))
    return {change for change in singles if table(change)}, {c for c in singles if not table(table.full & ~c)}


METHODS: dict[str, Callable[[Table], Found]] = {
    "nangrid": ours,
    "MARCO": marco,
    "dualize & advance": dualize_and_advance,
    "QuickXplain": quickxplain,
    "ProbDD": probdd,
    "ddmin": ddmin,
    "one factor at a time": one_factor_at_a_time,
}
