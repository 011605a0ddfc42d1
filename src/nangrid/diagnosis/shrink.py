"""Shrinks a sufficient set of changes to a minimal one, by bisection.

The least suspect changes are dropped first, as many at once as the set survives with a chance of one half. How many
those are depends on how dense causes are: one needed change among thirty is found by halves. A change that is likely to
be needed is left out of the whole set alone: if that is harmless, the same answer proves a cure. The density is learned
on the way, from a prior that prefers few needed changes (compare ProbDD, Wang et al. 2021, and QuickXplain, Junker
2004, which always halves).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Protocol

FEWEST, HIGHEST, STEP = 1.0, 0.6, 4
"""The lowest density of needed changes expects FEWEST of them, and each next one is STEP times as high."""
RARE = 0.1
"""Prior of every density but the lowest, relative to it."""
LIKELY = 0.4
"""Chance of being needed from which a change is left out alone."""
SPARED = 0.1
"""Factor on the chance of a change that the whole set does without. Another cause may be why."""


class Answers(Protocol):
    """Answers about sets of changes, each the bits of an integer."""

    def ask(self, point: int) -> bool | None:
        """Whether a set is sufficient; None without an answer."""

    def known(self, point: int) -> bool | None:
        """The same, if no question is needed."""


class Densities:
    """How likely each density of needed changes is, after the causes found so far."""

    def __init__(self, n: int, weights: Sequence[float]) -> None:
        """`weights`: how likely each change is to be needed, relative to the others."""
        mean = sum(weights) / n
        self.weights = [weight / mean for weight in weights]
        steps = math.ceil(math.log(max(1.0, HIGHEST * n / FEWEST), STEP))
        self.values = [FEWEST * STEP**i / n for i in range(steps)] + [HIGHEST]
        self.chances = [1.0] + [RARE] * steps

    def needed(self, number: int) -> list[float]:
        """Chance that a change is needed, per density."""
        return [min(0.95, value * self.weights[number]) for value in self.values]

    def expected(self, number: int, chances: Sequence[float]) -> float:
        """Chance that a change is needed."""
        return sum(chance * p for chance, p in zip(chances, self.needed(number), strict=True))

    def first_needed(self, rest: Sequence[int], spared: Collection[int], chances: Sequence[float]) -> list[float]:
        """Chance that each change of `rest` is the first needed one; the last entry: that none is."""
        left, first = list(chances), []
        for number in rest:
            needed = [p * (SPARED if number in spared else 1) for p in self.needed(number)]
            first.append(sum(chance * p for chance, p in zip(left, needed, strict=True)))
            left = [chance * (1 - p) for chance, p in zip(left, needed, strict=True)]
        return [*first, sum(left)]

    def given(self, chances: Sequence[float], dropped: Sequence[int], needed: Sequence[int]) -> list[float]:
        """The chances of the densities after some changes were dropped and others turned out to be needed."""
        updated = list(chances)
        for number in dropped:
            updated = [chance * (1 - p) for chance, p in zip(updated, self.needed(number), strict=True)]
        for number in needed:
            updated = [chance * p for chance, p in zip(updated, self.needed(number), strict=True)]
        total = sum(updated)
        return [chance / total for chance in updated] if total > 0 else list(chances)


def shrink(answers: Answers, point: int, densities: Densities) -> None:
    """Ask until a minimal sufficient subset of the sufficient set `point` is known.

    A set without an answer counts as insufficient here, so that the subset may not be minimal.
    """
    everything = [number for number in range(point.bit_length()) if point >> number & 1]
    rest = sorted(everything, key=lambda number: densities.weights[number])
    needed: list[int] = []
    spared: set[int] = set()
    chances = densities.chances
    while rest:
        last = rest[-1]
        # spared changes are dropped first, so that the last one is spared only if all are
        if last not in spared and _to_leave_out(answers, point, last, densities.expected(last, chances)):
            rest.pop()
            if answers.ask(point & ~(1 << last)):
                spared.add(last)
                rest.insert(0, last)
                chances = densities.given(chances, [last], [])
            else:
                needed.append(last)
                chances = densities.given(chances, [], [last])
            continue
        count = _droppable(answers, needed, rest, densities.first_needed(rest, spared, chances))
        dropped, found, rest = rest[:count], rest[count : count + 1], rest[count + 1 :]
        chances = densities.given(chances, [number for number in dropped if number not in spared], found)
        needed += found
    others = [number for number in everything if number not in needed]
    densities.chances = densities.given(densities.chances, others, needed)


def _to_leave_out(answers: Answers, point: int, number: int, chance: float) -> bool:
    """Whether to leave out one change alone: it is known to be needed, or likely to be."""
    known = answers.known(point & ~(1 << number))
    return known is False or (known is None and chance >= LIKELY)


def _droppable(answers: Answers, needed: Sequence[int], rest: Sequence[int], first: Sequence[float]) -> int:
    """How many changes at the start of `rest` can be dropped: the next one is the first needed, if any is."""

    def without(count: int) -> int:
        return sum(1 << number for number in (*needed, *rest[count:]))

    low, high = 0, len(rest) + 1
    while True:
        while high - low > 1 and answers.known(without(high - 1)) is False:
            high -= 1
        while high - low > 1 and answers.known(without(low + 1)):
            low += 1
        if high - low == 1:
            return low
        count = _middle(first, low, high)
        low, high = (count, high) if answers.ask(without(count)) else (low, count)


def _middle(first: Sequence[float], low: int, high: int) -> int:
    """The number of changes to drop, more than `low` and fewer than `high`, that splits the chances most evenly."""
    half = sum(first[low:high]) / 2
    return min(range(low + 1, high), key=lambda count: round(abs(sum(first[low:count]) - half), 12))
