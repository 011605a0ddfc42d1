"""Searches causes and cures between a failing cell and a reference, with one seed per answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nangrid.analysis.causes import Event
from nangrid.analysis.claims import Count
from nangrid.diagnosis.minimal_sets import Ask, Changes, MinimalSets, NotMonotoneError, OutOfRunsError, search
from nangrid.diagnosis.monotony import check_monotony, exhaust, minimal_among
from nangrid.diagnosis.oracle import CellOracle, CellResult, DiagnosisProblem, Log
from nangrid.records.errors import InputError

Shows = Callable[[Changes, int], bool | None]
"""Whether a cell, named by its changes and its seed, shows something; None if it has no answer."""


@dataclass(frozen=True)
class Rate:
    """How many seeds show something, and in which cells."""

    count: int
    seeds: int
    cells: tuple[str, ...]
    """Cell ids, one per seed."""

    @property
    def counted(self) -> Count:
        """The same without the cells."""
        return Count(self.count, self.seeds)


@dataclass(frozen=True)
class Answers:
    """Minimal causes of the event, minimal cures, and what is known of monotony."""

    causes: MinimalSets
    cures: MinimalSets
    clash: NotMonotoneError | None = None
    """The two sets that show the event not to be monotone."""
    agreeing: list[Changes] = field(default_factory=list)
    """Further sets that were run to test monotony, and agree with it."""


@dataclass(frozen=True)
class LeftOutSeed:
    """A seed that tells nothing about the causes, because the failing cell has another event first."""

    seed: int
    event: Event
    """The event that comes first."""
    finite: list[Changes]
    """Causes that do not fail with this seed."""


class SeedsDisagreeError(Exception):
    """Raised if one seed shows the event not to be monotone, and another does not."""


class SeededSearch:
    """Causes and cures with the first of `seeds`; the others confirm them."""

    tests_monotony = True

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
        self.left_out: dict[int, LeftOutSeed] = {}

    def run(self) -> Answers:
        """Search causes, then cures."""
        causes, clash, agreeing = self._search(self._is_sufficient)
        cures, other_clash, _ = self._search(self._fails)
        return Answers(causes, cures, clash or other_clash, agreeing)

    def causes(self) -> MinimalSets:
        """Search the minimal causes of the event."""
        return self._search(self._is_sufficient)[0]

    def confirms(self, answers: Answers) -> bool:
        """Whether every seed agrees with the answers, up to this search's horizon.

        Each cause must fail; the sets that the answers call harmless must not. Only the largest harmless sets are run,
        which by monotony decide every smaller one. OutOfRunsError if the budget is spent.
        """
        clash = (answers.clash.smaller, answers.clash.larger) if answers.clash else ()
        sets = dict.fromkeys(
            [frozenset(), *answers.causes.causes, *self._cured(answers), *self._harmless(answers), *clash]
        )
        keys = [(changes, seed) for seed in self.seeds for changes in sets]
        if any(key not in self.oracle.results for key in keys):
            number = "one seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
            self.log(f"confirming with {number} for {self.oracle.horizon} steps")
        self.oracle.run(keys)
        return all(self._agrees(answers, seed) for seed in self.seeds) and self._replacements_agree(answers, list(sets))

    def _agrees(self, answers: Answers, seed: int) -> bool:
        """Whether one seed agrees. A crash, or another event that came first, disagrees with nothing."""
        if any(self.has_event(changes, seed) for changes in self._harmless(answers)):
            return False
        if any(self.trains(changes, seed) is False for changes in self._cured(answers)):
            return False
        outcomes = [self.has_event(cause, seed) for cause in answers.causes.causes]
        return all(outcomes) or self._leave_out(answers, seed) or False not in outcomes

    def _replacements_agree(self, answers: Answers, sets: Sequence[Changes]) -> bool:
        """Whether further seeds agree, which take the place of those left out, as long as most seeds tell."""
        number, first = len(self.seeds), self.seeds[-1] + 1
        for seed in range(first, first + number // 2):
            if seed - self.seeds[0] - len(self.left_out) == number:
                break
            # the failing cell comes first, then the causes: most of what disagrees is not run elsewhere
            if not self._leave_out(answers, seed):
                fails = [self.problem.all_changes, *answers.causes.causes]
                if any(self.has_event(changes, seed) is False for changes in fails):
                    return False
                self.oracle.run([(changes, seed) for changes in sets])
                reference = self.oracle.result(frozenset(), seed)
                if reference is not None and (reference.event is not None or not self._agrees(answers, seed)):
                    return False
        return True

    def _leave_out(self, answers: Answers, seed: int) -> bool:
        """Whether another event comes first in the failing cell.

        The seed is then left out of the causes: it cannot show whether they fail like the failing cell.
        """
        failing = self.oracle.result(self.problem.all_changes, seed)
        if failing is None or failing.event in (None, self.event):
            return False
        run = [cause for cause in answers.causes.causes if (cause, seed) in self.oracle.results]
        finite = [cause for cause in run if self.has_event(cause, seed) is False]
        self.left_out[seed] = LeftOutSeed(seed, failing.event, finite)
        self.log(f"leaving out seed={seed}: {failing.event} comes first in {self.problem.sides[0]}")
        return True

    def _harmless(self, answers: Answers) -> list[Changes]:
        return [self.problem.all_changes - cure for cure in answers.causes.cures]

    def _cured(self, answers: Answers) -> list[Changes]:
        return [self.problem.all_changes - cure for cure in answers.cures.cures]

    def has_event(self, changes: Changes, seed: int) -> bool | None:
        """Whether one cell fails with the event; None if it crashed, another came first, or its seed is left out."""
        if seed in self.left_out:
            return None
        result = self.oracle.result(changes, seed)
        return None if result is None else result.has(self.event)

    def trains(self, changes: Changes, seed: int) -> bool | None:
        """Whether one cell trains to a loss no worse than the reference's; None if it crashed."""
        result = self.oracle.result(changes, seed)
        return None if result is None else result.trains(self._reference(seed), self._references())

    def rate(self, changes: Changes, shows: Shows) -> Rate:
        """Number of seeds for which `shows` is true, among those that were run and have an answer."""
        known = [seed for set_of_changes, seed in self.oracle.results if set_of_changes == changes]
        outcomes = {}
        for seed in known:
            with contextlib.suppress(OutOfRunsError):  # the reference was not run with this seed
                if (outcome := shows(changes, seed)) is not None:
                    outcomes[seed] = outcome
        results = [self.oracle.result(changes, seed) for seed in outcomes]
        ids = tuple(result.record.cell_id for result in results if result)
        return Rate(sum(outcomes.values()), len(outcomes), ids)

    def steps_run(self, sets: Iterable[Changes]) -> int:
        """Steps that all these cells ran: the horizon, or fewer if a script ends earlier."""
        wanted = set(sets)
        known = [result for (changes, _), result in self.oracle.results.items() if changes in wanted]
        return min((result.record.steps_done for result in known if result), default=self.oracle.horizon)

    def check_reference(self) -> None:
        """InputError if the reference fails with any seed: what it does by itself cannot be told from a change."""
        self.oracle.run([(frozenset(), seed) for seed in self.seeds])
        for seed in self.seeds:
            if (event := self._reference(seed).event) is not None:
                raise InputError(f"{self.problem.sides[1]} fails with seed={seed} ({event}): give levels that train.")

    def _search(self, ask: Ask) -> tuple[MinimalSets, NotMonotoneError | None, list[Changes]]:
        n, answers = len(self.problem.changes), dict[Changes, bool | None]()

        def kept(changes: Changes) -> bool | None:
            answers[changes] = ask(changes)
            return answers[changes]

        found = search(n, kept, self.weights)
        if not found.complete or not self.tests_monotony:
            return found, None, []
        try:
            return found, None, check_monotony(n, kept, found)
        except OutOfRunsError:
            return found, None, []
        except NotMonotoneError as clash:
            self._check_seeds_agree(clash, ask)
            return self._not_monotone(answers, ask), clash, []

    def _check_seeds_agree(self, clash: NotMonotoneError, ask: Ask) -> None:
        """SeedsDisagreeError if another seed than the first does not show that the event is not monotone."""
        shows = self.has_event if ask == self._is_sufficient else self.does_not_train
        for seed in self.problem.seeds[1:]:
            if not shows(clash.smaller, seed) or shows(clash.larger, seed) is not False:
                raise SeedsDisagreeError

    def _not_monotone(self, answers: Mapping[Changes, bool | None], ask: Ask) -> MinimalSets:
        """Causes and cures among all combinations, or among those that were run if too few runs are left."""
        n = len(self.problem.changes)
        if 2**n - len(answers) <= self.oracle.budget.left:
            self.log("adding a change prevents the failure: running all combinations")
            return exhaust(n, ask)
        self.log("adding a change prevents the failure, and there are too many combinations to run them all")
        ends = {frozenset[int](): False, self.problem.all_changes: True}
        return minimal_among({**answers, **ends}, self.problem.all_changes, complete=False)

    def _is_sufficient(self, changes: Changes) -> bool | None:
        self.log(f"does {levels_of_changes(self.problem, changes)} alone cause it?")
        answer, seed = self._decide(changes, self.has_event), self.seeds[0]
        if answer is None and (result := self.oracle.result(changes, seed)) is not None and result.event:
            self.log(f"  undecided, another failure came first: {result.event}")
        elif answer is not None:
            self.log(f"  {'yes' if answer else 'no, finite'}{self._counted(changes, self.has_event)}")
        return answer

    def _fails(self, changes: Changes) -> bool | None:
        known = (changes, self.seeds[0]) in self.oracle.results
        if not known:
            self.log(f"does it train with {levels_of_changes(self.problem, changes)}?")
        answer = self._decide(changes, self.does_not_train)
        if not known and answer is not None:
            result = self.oracle.result(changes, self.seeds[0])
            why = (result and result.event) or "its loss is worse than the reference"
            self.log(f"  no, {why}" if answer else f"  yes{self._counted(changes, self.trains)}")
        return answer

    def _decide(self, changes: Changes, shows: Shows) -> bool | None:
        return shows(changes, self.seeds[0])

    def _counted(self, changes: Changes, shows: Shows) -> str:
        return ""

    def does_not_train(self, changes: Changes, seed: int) -> bool | None:
        """Whether one cell fails, or learns less than the reference; None if it crashed."""
        trains = self.trains(changes, seed)
        return None if trains is None else not trains

    def _reference(self, seed: int) -> CellResult:
        reference = self.oracle.result(frozenset(), seed)
        if reference is None:
            raise InputError(f"{self.problem.sides[1]} crashes with seed={seed}: give levels that train.")
        return reference

    def _references(self) -> list[CellResult]:
        return [result for (changes, _), result in self.oracle.results.items() if not changes and result]


def levels_of_changes(problem: DiagnosisProblem, changes: Changes) -> str:
    """The failing cell's levels of these changes, as they are typed."""
    return " ".join(" ".join(problem.changes[i][0] or problem.changes[i][1]) for i in sorted(changes))
