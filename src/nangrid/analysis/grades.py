"""Grades the causes and cures that a grid shows: proven, or seen but perhaps by chance.

Where the seeds of every combination agree, an event is deterministic: with the same seed nothing but the levels
differs, and set inclusion is proof. Where seeds disagree, a cause is tested on the runs that hold it against those that
hold neither it nor a cause accepted before; a cure, on the runs that hold the cause against those that hold what is
left after the change. The tests are exact and one-sided; a weighted Bonferroni correction
covers every set that the grid could have shown, because a set is only looked at after it failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nangrid.analysis.claims import ALPHA, Count, chance, more_seeds

if TYPE_CHECKING:
    from nangrid.analysis.causes import Combination, Event, Levels
    from nangrid.records.autopsy import Autopsy

Bools = NDArray[np.bool_]

ENOUGH_RUNS = 2
"""Runs that show a cause of one seed. A single one may have failed by itself."""
_PRINTED = 3
"""Cures that a verdict prints per event."""


class Runs:
    """How many runs of each combination met an event, of those in which no other event came first, and of all."""

    def __init__(self, grid: Sequence[Combination], reference: Combination, event: Event | None) -> None:
        """`event`: None for any event."""
        pairs = list(dict.fromkeys(pair for c in grid for pair in c.levels))
        self.reference = reference.levels
        self.column = {pair: number for number, pair in enumerate(pairs)}
        self.holds = np.array([[pair in set(c.levels) for pair in pairs] for c in grid], bool)
        outcomes = [[happened for _, happened in c.by_seed.values()] for c in grid]
        self.met = np.array([sum(_met(o, event) for o in of_one) for of_one in outcomes])
        self.runs = np.array([sum(_met(o, event) or o is None for o in of_one) for of_one in outcomes])
        self.all_runs = np.array([len(of_one) for of_one in outcomes])

    @property
    def agree(self) -> bool:
        """Whether in each combination all seeds met the event or none did."""
        return not bool(((self.met > 0) & (self.met < self.all_runs)).any())

    def holding(self, levels: Levels) -> Bools:
        """The combinations that have all these levels."""
        found: Bools = np.logical_and.reduce(self.holds[:, [self.column[pair] for pair in levels]], axis=1)
        return found

    def without(self, causes: Iterable[Levels]) -> Bools:
        """The combinations that hold none of these causes."""
        free: Bools = np.ones(len(self.holds), bool)
        for cause in causes:
            free &= ~self.holding(cause)
        return free

    def count(self, chosen: Bools) -> Count:
        """Runs of these combinations."""
        return Count(int(self.met[chosen].sum()), int(self.runs[chosen].sum()))

    def least(self, chosen: Bools) -> Count:
        """The same, with the runs in which another event came first as misses.

        Where another event follows unless this one comes first, all other runs met this one, even by chance.
        """
        return Count(int(self.met[chosen].sum()), int(self.all_runs[chosen].sum()))

    def other_levels(self, chosen: Bools, levels: Levels) -> list[int]:
        """Columns of the levels that some of these combinations have, the reference and `levels` do not."""
        known = {self.column[pair] for pair in (*self.reference, *levels)}
        return [int(column) for column in np.flatnonzero(self.holds[chosen].any(axis=0)) if column not in known]


def _met(happened: Event | None, event: Event | None) -> bool:
    return happened is not None and event in (None, happened)


def contradicted(runs: Runs, cause: Levels) -> bool:
    """Whether runs that hold a cause did not fail, and no single other level tells which.

    One level that tells them apart is a cure, or masks the event; a mere scatter looks like chance.
    """
    chosen = runs.holding(cause) & (runs.runs > 0)
    failed = runs.met[chosen] > 0
    if failed.all():
        return False
    blockers = runs.holds[chosen][:, runs.other_levels(chosen, cause)]
    return not any(bool(np.array_equal(blocker, ~failed)) for blocker in blockers.T)


def without_scatter(runs: Runs, candidates: Sequence[Levels], sure: Sequence[Levels]) -> list[Levels]:
    """The candidates that are proven where seeds agree: the sure ones, and those of one seed that look like no scatter.

    With one seed the other runs that hold a cause must not contradict it. Once one candidate of the event is
    contradicted, another one must not rest on a single run.
    """
    scatter = [levels for levels in candidates if levels not in sure and contradicted(runs, levels)]
    least = ENOUGH_RUNS if scatter else 1
    steady = [levels for levels in candidates if runs.count(runs.holding(levels)).met >= least]
    return [levels for levels in candidates if levels in sure or (levels in steady and levels not in scatter)]


def shown_again(runs: Runs, levels: Levels, others: Sequence[Levels], autopsies: Iterable[Autopsy | None]) -> bool:
    """Whether several runs show a cause, or the autopsy of the only one explains all of it.

    Runs that hold one of the `others` show that one.
    """
    own = runs.holding(levels) & runs.without(others)
    return runs.count(own).met >= ENOUGH_RUNS or all(_explains(autopsy, levels, runs) for autopsy in autopsies)


def _explains(autopsy: Autopsy | None, levels: Levels, runs: Runs) -> bool:
    """Whether the replay repeated its step to the last bit, and the remedies are for each factor of the levels.

    Remedies for every factor of the grid would fit any levels, so that they are no evidence.
    """
    if autopsy is None or not autopsy.reproduced:
        return False
    remedies = {s.override.partition("=")[0].split(".")[0] for s in autopsy.suggestions or () if s.override}
    return _groups(levels) <= remedies and not _groups(runs.reference) <= remedies


def _groups(levels: Levels) -> set[str]:
    return {factor.split(".")[0] for factor, _ in levels}


def smallest(candidates: Iterable[Levels]) -> list[Levels]:
    """The sets that contain no other one, the smaller first."""
    found: list[Levels] = []
    for levels in sorted(candidates, key=len):
        if not any(set(known) <= set(levels) for known in found):
            found.append(levels)
    return found


class CauseTests:
    """Tests the candidate causes of one event where seeds disagree."""

    def __init__(self, runs: Runs, possible: Iterable[Levels]) -> None:
        """`possible`: every set of levels that the grid could have shown to be a cause."""
        self.runs = runs
        self.sizes = Counter(len(levels) for levels in possible)
        self.accepted: list[Levels] = []

    def accept(self, candidates: Iterable[Levels]) -> list[Levels]:
        """The candidates that are proven: the smallest first, each with the accepted ones held apart."""
        waiting = sorted(candidates, key=len)
        while proven := next((levels for levels in waiting if self._proven(levels)), None):
            self.accepted.append(proven)
            waiting = [levels for levels in waiting if not set(proven) <= set(levels)]
        return self.accepted

    def level(self, levels: Levels) -> float:
        """The claim's part of ALPHA: half for single levels, a quarter for pairs, ..., shared by all of one size."""
        return ALPHA * 0.5 ** len(levels) / max(1, self.sizes[len(levels)])

    def counts(self, levels: Levels) -> tuple[Count, Count]:
        """Runs that hold the levels, and runs that do not; neither hold an accepted cause."""
        free = self.runs.without(self.accepted)
        chosen = self.runs.holding(levels)
        return self.runs.least(chosen & free), self.runs.count(~chosen & free)

    def excludes(self, levels: Levels, part: Levels) -> bool:
        """Whether part of an accepted cause is proven not to be enough: runs with it, but not all of it, fail less.

        Another cause that contains the part is held apart only if the part is proven not to be enough for that one.
        """
        others = [other for other in self.accepted if other != levels and set(part) <= set(other)]
        not_enough = [other for other in others if not part or self._excludes(other, part, others)]
        return self._excludes(levels, part, [other for other in others if other not in not_enough])

    def _excludes(self, levels: Levels, part: Levels, kept: Sequence[Levels]) -> bool:
        free = self.runs.without(other for other in self.accepted if other not in (levels, *kept))
        chosen, partly = self.runs.holding(levels), self.runs.holding(part)
        parts = sum((1 << len(cause)) - 1 for cause in self.accepted)
        whole, rest = self.runs.least(chosen & free), self.runs.count(partly & ~chosen & free)
        return chance(whole, rest) * parts <= ALPHA

    def more(self, levels: Levels, seeds: int) -> int | None:
        """How many more seeds would tell."""
        return more_seeds(*self.counts(levels), seeds, self.level(levels))

    def _proven(self, levels: Levels) -> bool:
        return chance(*self.counts(levels)) <= self.level(levels) and self._alone(levels)

    def _alone(self, levels: Levels) -> bool:
        """Whether the runs still differ without any one other level, so that none is part of the cause."""
        free = self.runs.without(self.accepted)
        chosen = self.runs.holding(levels) & free
        apart = self.runs.count(~self.runs.holding(levels) & free)
        others = self.runs.other_levels(chosen, levels)
        return all(chance(self.runs.least(chosen & ~self.runs.holds[:, column]), apart) <= ALPHA for column in others)


class CureTests:
    """Tests whether what a change leaves of a failing combination still fails, where seeds disagree."""

    def __init__(self, runs: Runs, causes: Mapping[Levels, Sequence[Levels]], seen: Sequence[Levels]) -> None:
        """`runs` of any event; `causes`: those of every event, each with its parts that may be enough.

        `seen`: sets of levels that failed, perhaps by chance.
        """
        self.runs = runs
        self.causes = causes
        self.seen = seen

    def proven(self, failing: Levels, left: Levels) -> bool:
        """Whether the runs that hold `left` fail less often than those that hold the causes in `failing`.

        The failing combination itself must fail more often than combinations that hold no cause, and what is left must
        not: where another event always fails, to fail less often is not to train.
        """
        if self.runs.agree:
            return True
        free, chosen = self.runs.without(self.causes), self._holding(left)
        fails = chance(self.runs.count(self.runs.holding(failing)), self.runs.count(free)) <= ALPHA
        still_fails = chance(self.runs.count(chosen), self.runs.count(free & ~chosen)) <= ALPHA
        return fails and not still_fails and chance(*self.counts(failing, left)) <= self.level(left)

    def level(self, left: Levels) -> float:
        """The part of ALPHA for one of the few cures that a verdict prints.

        Where a failure was seen in part of `left`, any combination without a cause could train by chance instead.
        """
        doubtful = any(set(levels) <= set(left) for levels in self.seen)
        return ALPHA / max(_PRINTED, int(self.runs.without(self.causes).sum()) if doubtful else 0)

    def counts(self, failing: Levels, left: Levels) -> tuple[Count, Count]:
        """Runs that hold a cause that is in `failing`, and those that hold what the changes left and no cause."""
        held = [cause for cause in self.causes if set(cause) <= set(failing)]
        return self.runs.count(~self.runs.without(held)), self.runs.count(self._holding(left))

    def _holding(self, left: Levels) -> Bools:
        rest = tuple(pair for pair in left if pair not in self.runs.reference)
        # a part of a cause may be what is at work, and then runs that hold the cause are evidence about the part
        apart = [cause for cause, parts in self.causes.items() if not any(set(part) <= set(rest) for part in parts)]
        return self.runs.holding(rest) & self.runs.without(apart)

    def more(self, failing: Levels, left: Levels, seeds: int) -> int | None:
        """How many more seeds would tell."""
        return more_seeds(*self.counts(failing, left), seeds, self.level(left))
