"""What do the cells between two end points say of causes and cures, each answer being of some seeds?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nangrid.analysis.causes import Event
from nangrid.diagnosis.exhaustive import exhaust
from nangrid.diagnosis.minimal_sets import Ask, Changes, MinimalSets, NotMonotoneError, search
from nangrid.diagnosis.oracle import CellOracle, CellResult, DiagnosisProblem, meets
from nangrid.records.errors import InputError

Log = Callable[[str], None]


@dataclass(frozen=True)
class Rate:
    """How often, over seeds, and in which cells."""

    met: int
    seeds: int
    cells: tuple[str, ...]
    """Ids."""


Answers = tuple[MinimalSets, MinimalSets, NotMonotoneError | None]
"""Causes of the event, cures, and the clash where one was not monotone."""


class Search:
    """Causes and cures, an answer being of all seeds: the event counts if any meets it, a cure if all train."""

    def __init__(
        self,
        problem: DiagnosisProblem,
        oracle: CellOracle,
        seeds: Sequence[int],
        event: Event,
        weights: Sequence[float],
        say: Log,
    ) -> None:
        self.problem = problem
        self.oracle = oracle
        self.seeds = seeds
        self.event = event
        self.weights = weights
        self.say = say

    def run(self) -> Answers:
        """Both."""
        causes, clash = self.causes()
        cures, other_clash = self._search(self._fails)
        return causes, cures, clash or other_clash

    def causes(self) -> tuple[MinimalSets, NotMonotoneError | None]:
        """Of the event."""
        return self._search(self._brings_it_about)

    def confirms(self, found: Answers) -> bool:
        """Whether all seeds say, to the full horizon, that what borders the causes and the cures does not fail.

        By monotony that decides every smaller set. The causes themselves are run too, to tell how often.
        """
        causes, cures, _ = found
        everything = self.problem.everything
        clean = [everything - cure for cure in causes.cures]
        cured = [everything - cure for cure in cures.cures]
        wanted = dict.fromkeys([frozenset(), *clean, *cured, *causes.causes])
        if any((changes, seed) not in self.oracle.cells for changes in wanted for seed in self.seeds):
            with_seeds = "one seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
            self.say(f"confirming with {with_seeds} to step {self.oracle.horizon}")
        self.oracle.look((changes, seed) for changes in wanted for seed in self.seeds)
        for seed in self.seeds:
            reference = self._reference(seed)
            if reference.event is not None:
                side = self.problem.sides[1]
                raise InputError(f"{side} fails with seed={seed} ({reference.event}): give levels that train.")
        met = any(self.meets(changes, seed) for changes in clean for seed in self.seeds)
        return not met and all(self.trains(changes, seed) is not False for changes in cured for seed in self.seeds)

    def meets(self, changes: Changes, seed: int) -> bool | None:
        """Whether one cell meets the event; None where another event came first, which says nothing of this one."""
        return meets(self.oracle.one(changes, seed), self.event)

    def trains(self, changes: Changes, seed: int) -> bool | None:
        """Whether one cell trains to a loss no worse than the reference's."""
        answer = self.oracle.one(changes, seed)
        return None if answer is None else answer.trains(self._reference(seed))

    def rate(self, changes: Changes, happens: Callable[[Changes, int], bool | None]) -> Rate:
        """How many seeds say yes, of those that say anything."""
        outcomes = {seed: happens(changes, seed) for seed in self.seeds}
        told = [seed for seed, outcome in outcomes.items() if outcome is not None]
        answers = [self.oracle.one(changes, seed) for seed in told]
        ids = tuple(answer.record.cell_id for answer in answers if answer)
        return Rate(sum(outcomes[seed] is True for seed in told), len(told), ids)

    def watched(self, combinations: Iterable[Changes]) -> int:
        """Steps for which all of them were: the horizon, or less where a run comes to its own end before."""
        answers = [self.oracle.one(changes, seed) for changes in combinations for seed in self.seeds]
        return min((a.record.steps_done for a in answers if a), default=self.oracle.horizon)

    def _search(self, ask: Ask) -> tuple[MinimalSets, NotMonotoneError | None]:
        n = len(self.problem.changes)
        try:
            return search(n, ask, self.weights), None
        except NotMonotoneError as clash:
            self.say("not monotone, a further change undoes it: all combinations are run")
            return exhaust(n, ask), clash

    def _brings_it_about(self, changes: Changes) -> bool | None:
        self.say(f"does it come about by {typed(self.problem, changes)} alone?")
        outcomes = []
        for seed in self.seeds:
            outcomes.append(self.meets(changes, seed))
            if outcomes[-1]:
                self.say("  yes")
                return True
        if None not in outcomes:
            self.say("  no: finite")
            return False
        answer = self.oracle.one(changes, self.seeds[outcomes.index(None)])
        if answer is not None:
            self.say(f"  not decided, another event came first: {answer.event}")
        return None

    def _fails(self, changes: Changes) -> bool | None:
        known = all((changes, seed) in self.oracle.cells for seed in self.seeds)
        if not known:
            self.say(f"does it train with {typed(self.problem, changes)}?")
        for seed in self.seeds:
            trains = self.trains(changes, seed)
            if trains is None:
                return None
            if not trains:
                answer = self.oracle.one(changes, seed)
                if not known and answer:
                    self.say(f"  no: {answer.event or 'its loss is worse than the reference'}")
                return True
        if not known:
            self.say("  yes")
        return False

    def _reference(self, seed: int) -> CellResult:
        reference = self.oracle.one(frozenset(), seed)
        if reference is None:
            raise InputError(f"{self.problem.sides[1]} crashes with seed={seed}: give levels that train.")
        return reference


def typed(problem: DiagnosisProblem, changes: Changes) -> str:
    """The failing cell's levels of these changes."""
    return " ".join(" ".join(problem.changes[i][0] or problem.changes[i][1]) for i in sorted(changes))
