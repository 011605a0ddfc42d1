"""Searches causes and cures of a failure that seeds disagree about: each cell is run with as many seeds as it takes.

The failing cell and the reference are compared first, each with the same seeds, until their rates of failure are told
apart. Each cell of the search is then decided by Wald's sequential probability ratio test (1945) between the two rates:
one that is clear takes few seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nangrid.analysis.claims import ALPHA, Count, chance
from nangrid.diagnosis.minimal_sets import Changes, MinimalSets, OutOfRunsError
from nangrid.diagnosis.seeded_search import Answers, SeededSearch, Shows

MOST_SEEDS = 30
"""Seeds after which a cell is undecided."""
LOOK = 0.2
"""Share of ALPHA at which the end points are told apart, because they are compared after each further seed."""
HOPELESS = 8
"""Further seeds after which the end points are not compared any more, if the failing cell fails no more often."""
SAME = 2 / 3
"""A cell that fails at this share of the failing cell's rate, or more often, has the failure."""


@dataclass(frozen=True)
class SequentialTest:
    """Decides between two rates of failure, with an error rate of at most `level` in either direction."""

    high: float
    low: float
    level: float

    @classmethod
    def between(cls, failing: Count, reference: Count, level: float) -> SequentialTest:
        """The test between the rates of the two end points."""
        high, low = SAME * _estimate(failing), _estimate(reference)
        return cls(high, min(low, high / 2), level)

    def decision(self, count: Count) -> bool | None:
        """Whether the cell fails at the high rate; None if more seeds are needed."""
        evidence, bound = self._evidence(count), math.log((1 - self.level) / self.level)
        return True if evidence >= bound else False if evidence <= -bound else None

    def fewest(self, count: Count) -> int:
        """The least number of seeds that can decide, if they all agree."""
        for more in range(1, MOST_SEEDS):
            agreeing = (Count(count.met + more, count.runs + more), Count(count.met, count.runs + more))
            if any(self.decision(further) is not None for further in agreeing):
                return more
        return MOST_SEEDS

    def _evidence(self, count: Count) -> float:
        met, missed = math.log(self.high / self.low), math.log((1 - self.high) / (1 - self.low))
        return count.met * met + count.missed * missed


class SequentialSearch(SeededSearch):
    """Causes and cures of a failure whose rate lies between the end points' rates."""

    tests_monotony = False
    level: float
    """Error rate of each test."""
    told_apart = False
    """Whether the end points are told apart from each other."""
    failing: Count
    """The failing cell's rate of the event. Its first seed is left out, because it was chosen for its failure."""
    reference: Count

    def run(self) -> Answers:
        """Search causes, then cures; if the end points are not told apart, only they are causes and cures."""
        self.level = ALPHA / (2 * len(self.problem.changes) + 2)
        everything = self.problem.all_changes
        self.told_apart = self._tells_end_points_apart()
        if not self.told_apart:
            alone = MinimalSets([everything], [everything], complete=False)
            return Answers(alone, alone)
        self._tests: dict[Shows, SequentialTest] = {
            self.has_event: SequentialTest.between(self.failing, self.reference, self.level),
            self.does_not_train: SequentialTest.between(
                self._of_end_point(everything, self.does_not_train),
                self._of_end_point(frozenset(), self.does_not_train),
                self.level,
            ),
        }
        return super().run()

    def _tells_end_points_apart(self) -> bool:
        everything = self.problem.all_changes
        for number in range(len(self.seeds), max(len(self.seeds), MOST_SEEDS) + 1):
            try:
                self.oracle.run([(ends, seed) for seed in self._stream(number) for ends in (everything, frozenset())])
            except OutOfRunsError:
                break
            self._count_end_points()
            p = chance(self.failing, self.reference)
            if p <= LOOK * ALPHA:
                return True
            if p >= 1 and self.failing.runs >= HOPELESS:
                break
        self._count_end_points()
        return False

    def _count_end_points(self) -> None:
        self.failing = self._of_end_point(self.problem.all_changes, self.has_event)
        self.reference = self._of_end_point(frozenset(), self.has_event)

    def _of_end_point(self, changes: Changes, shows: Shows) -> Count:
        """In the failing cell a run without an answer counts as a miss.

        Where another event follows unless this one comes first, all runs with an answer have this one, even by chance.
        """
        seeds = [s for of, s in self.oracle.results if of == changes and s != self.seeds[0]]
        outcomes = [shows(changes, seed) for seed in seeds]
        known = [bool(outcome) for outcome in outcomes if changes or outcome is not None]
        return Count(sum(known), len(known))

    def _decide(self, changes: Changes, shows: Shows) -> bool | None:
        test, tried = self._tests[shows], 0
        while True:
            count = self.rate(changes, shows).counted
            decision = test.decision(count)
            if decision:  # only if it holds with the runs without an answer as misses
                count = Count(count.met, self._run(changes))
                decision = test.decision(count) or None
            if decision is not None or tried >= MOST_SEEDS or (tried and not count.runs):
                return decision
            tried = min(MOST_SEEDS, max(tried, self._run(changes)) + test.fewest(count))
            self.oracle.run([(changes, seed) for seed in self._stream(tried)])

    def _run(self, changes: Changes) -> int:
        return sum(of == changes for of, _ in self.oracle.results)

    def _counted(self, changes: Changes, shows: Shows) -> str:
        rate = self.rate(changes, shows)
        return f", {rate.count} of {rate.seeds} seeds"

    def _stream(self, number: int) -> Sequence[int]:
        """The first seeds, and more where the user gave fewer."""
        return range(self.seeds[0], self.seeds[0] + number)


def _estimate(count: Count) -> float:
    """The rate, half a run of each outcome added: never 0 or 1."""
    return (count.met + 0.5) / (count.runs + 1)
