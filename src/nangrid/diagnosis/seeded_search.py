"""Searches causes and cures between a failing cell and a reference, with one or several seeds per answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nangrid.analysis.causes import Event
from nangrid.diagnosis.exhaustive import exhaust
from nangrid.diagnosis.minimal_sets import Ask, Changes, MinimalSets, NotMonotoneError, search
from nangrid.diagnosis.oracle import CellOracle, CellResult, DiagnosisProblem, Log
from nangrid.records.errors import InputError


@dataclass(frozen=True)
class Rate:
    """How many seeds show something, and in which cells."""

    count: int
    seeds: int
    cells: tuple[str, ...]
    """Cell ids, one per seed."""


@dataclass(frozen=True)
class Answers:
    """Minimal causes of the event, minimal cures, and the two sets that show the event not to be monotone."""

    causes: MinimalSets
    cures: MinimalSets
    clash: NotMonotoneError | None


class SeededSearch:
    """Causes and cures over `seeds`: a set has the event if any seed does, and trains if all seeds do."""

    def __init__(
        self,
        problem: DiagnosisProblem,
        oracle: CellOracle,
        seeds: Sequence[int],
        event: Event,
        weights: Sequence[float],
        log: Log,
    ) -> None:
        """`weights`: how likely each change is to matter, 1 being average; they only order the questions."""
        self.problem = problem
        self.oracle = oracle
        self.seeds = seeds
        self.event = event
        self.weights = weights
        self.log = log

    def run(self) -> Answers:
        """Search causes, then cures."""
        causes, clash = self.causes()
        cures, other_clash = self._search(self._fails)
        return Answers(causes, cures, clash or other_clash)

    def causes(self) -> tuple[MinimalSets, NotMonotoneError | None]:
        """Search the minimal causes of the event."""
        return self._search(self._is_sufficient)

    def confirms(self, answers: Answers) -> bool:
        """Whether no set that the answers call harmless fails with any seed, up to this search's horizon.

        Only the largest harmless sets are run: by monotony they decide every smaller one. The causes are run too, to
        count their seeds.
        """
        everything = self.problem.all_changes
        without_event = [everything - cure for cure in answers.causes.cures]
        cured = [everything - cure for cure in answers.cures.cures]
        sets = dict.fromkeys([frozenset(), *without_event, *cured, *answers.causes.causes])
        keys = [(changes, seed) for changes in sets for seed in self.seeds]
        if any(key not in self.oracle.results for key in keys):
            number = "one seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
            self.log(f"confirming with {number} to step {self.oracle.horizon}")
        self.oracle.run(keys)
        self._check_reference()
        failed = any(self.has_event(changes, seed) for changes in without_event for seed in self.seeds)
        return not failed and all(self.trains(changes, seed) is not False for changes in cured for seed in self.seeds)

    def has_event(self, changes: Changes, seed: int) -> bool | None:
        """Whether one cell fails with the event; None if it crashed, or if another event came first."""
        result = self.oracle.result(changes, seed)
        return None if result is None else result.has(self.event)

    def trains(self, changes: Changes, seed: int) -> bool | None:
        """Whether one cell trains to a loss no worse than the reference's; None if it crashed."""
        result = self.oracle.result(changes, seed)
        return None if result is None else result.trains(self._reference(seed))

    def rate(self, changes: Changes, shows: Callable[[Changes, int], bool | None]) -> Rate:
        """Number of seeds for which `shows` is true, among those with an answer."""
        outcomes = {seed: outcome for seed in self.seeds if (outcome := shows(changes, seed)) is not None}
        results = [self.oracle.result(changes, seed) for seed in outcomes]
        ids = tuple(result.record.cell_id for result in results if result)
        return Rate(sum(outcomes.values()), len(outcomes), ids)

    def steps_run(self, sets: Iterable[Changes]) -> int:
        """Steps that all these cells ran: the horizon, or fewer if a script ends earlier."""
        results = [self.oracle.result(changes, seed) for changes in sets for seed in self.seeds]
        return min((result.record.steps_done for result in results if result), default=self.oracle.horizon)

    def _search(self, ask: Ask) -> tuple[MinimalSets, NotMonotoneError | None]:
        n = len(self.problem.changes)
        try:
            return search(n, ask, self.weights), None
        except NotMonotoneError as clash:
            self.log("adding a change prevents the failure: running all combinations")
            return exhaust(n, ask), clash

    def _is_sufficient(self, changes: Changes) -> bool | None:
        self.log(f"does {levels_of_changes(self.problem, changes)} alone cause it?")
        outcomes = []
        for seed in self.seeds:
            outcomes.append(self.has_event(changes, seed))
            if outcomes[-1]:
                self.log("  yes")
                return True
        if None not in outcomes:
            self.log("  no, finite")
            return False
        result = self.oracle.result(changes, self.seeds[outcomes.index(None)])
        if result is not None:
            self.log(f"  undecided, another failure came first: {result.event}")
        return None

    def _fails(self, changes: Changes) -> bool | None:
        known = all((changes, seed) in self.oracle.results for seed in self.seeds)
        if not known:
            self.log(f"does it train with {levels_of_changes(self.problem, changes)}?")
        for seed in self.seeds:
            trains = self.trains(changes, seed)
            if trains is None:
                return None
            if not trains:
                result = self.oracle.result(changes, seed)
                if not known and result:
                    self.log(f"  no, {result.event or 'its loss is worse than the reference'}")
                return True
        if not known:
            self.log("  yes")
        return False

    def _check_reference(self) -> None:
        for seed in self.seeds:
            if (event := self._reference(seed).event) is not None:
                side = self.problem.sides[1]
                raise InputError(f"{side} fails with seed={seed} ({event}): give levels that train.")

    def _reference(self, seed: int) -> CellResult:
        reference = self.oracle.result(frozenset(), seed)
        if reference is None:
            raise InputError(f"{self.problem.sides[1]} crashes with seed={seed}: give levels that train.")
        return reference


def levels_of_changes(problem: DiagnosisProblem, changes: Changes) -> str:
    """The failing cell's levels of these changes, as they are typed."""
    return " ".join(" ".join(problem.changes[i][0] or problem.changes[i][1]) for i in sorted(changes))
