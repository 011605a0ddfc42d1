"""Searches the levels between the two end points of a factor: which of them cause the event too?

Rows of levels are run until every pair of levels was in a row that does not fail, or holds a known cause (a covering
array of strength two, built as the answers come in, so that no known cause hides another one). A row that fails is
searched against the reference like a failing cell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from nangrid.analysis.causes import Event
from nangrid.diagnosis.budget import Budget
from nangrid.diagnosis.grading import Claim, grade_agreeing
from nangrid.diagnosis.minimal_sets import Changes, OutOfRunsError
from nangrid.diagnosis.oracle import CellOracle, DiagnosisProblem, Log, Overrides
from nangrid.diagnosis.seeded_search import SeededSearch, SeedsDisagreeError
from nangrid.grid.plan import CellPlan
from nangrid.records.errors import InputError

Levels = frozenset[tuple[int, int]]
"""(number of a factor, number of its level): 1 is the failing level, 2 and more are those between; 0 is left out."""


@dataclass(frozen=True)
class LevelCause:
    """A cause with a level between the end points."""

    levels: tuple[Overrides, ...]
    claim: Claim


@dataclass(frozen=True)
class LevelCauses:
    """The causes among the levels between the end points."""

    causes: list[LevelCause]
    rows: int
    """Rows of levels that were run."""
    undecided: int
    """Single levels and pairs of levels that no row decides."""


class LevelSearch:
    """Causes among all levels of a problem, after those between its end points are known."""

    def __init__(self, problem: DiagnosisProblem, event: Event, horizon: int, log: Log, budget: Budget) -> None:
        self.problem = problem
        self.event = event
        self.horizon = horizon
        self.log = log
        self.budget = budget
        self.levels = [(failing, *more) for (failing, _), more in zip(problem.changes, problem.between, strict=True)]
        self.rows = 0

    def run(self, known: Iterable[Changes], confirmed_to: int, reproduced: bool) -> LevelCauses:
        """Search until every pair of levels is decided; new causes are confirmed with every seed.

        `known`: the causes between the end points. `reproduced`: see grade_claims.
        """
        first = [frozenset((factor, 1) for factor in cause) for cause in known]
        causes, open_ = list(first), self._pairs()
        undecided: set[Levels] = set()
        try:
            while open_ := {pair for pair in open_ if not any(cause <= pair for cause in causes)}:
                pair = min(open_, key=sorted)
                row = self._row(pair, open_, causes)
                new = self._causes_in(row)
                if new is None or (new and set(new) <= set(causes)):
                    undecided.add(pair)
                    open_.remove(pair)
                elif new:
                    causes += [cause for cause in new if cause not in causes]
                else:
                    open_ = {pair for pair in open_ if not pair <= row}
        except OutOfRunsError:
            undecided |= open_
        found = [self._confirmed(cause, confirmed_to, reproduced) for cause in causes if cause not in first]
        return LevelCauses(found, self.rows, len(undecided))

    def _pairs(self) -> set[Levels]:
        """Every single level and every pair of levels of which one is between the end points."""
        singles = [(factor, n) for factor, levels in enumerate(self.levels) for n in range(1, len(levels) + 1)]
        pairs = {frozenset(pair) for pair in combinations(singles, 2) if pair[0][0] != pair[1][0]}
        return {s for s in {frozenset([one]) for one in singles} | pairs if any(level > 1 for _, level in s)}

    def _row(self, pair: Levels, open_: set[Levels], causes: Sequence[Levels]) -> Levels:
        """A row with this pair, and as many open pairs as it can hold without a known cause."""
        row = pair
        for factor in range(len(self.levels)):
            if any(factor == placed for placed, _ in row):
                continue
            choices = [row, *(row | {(factor, level)} for level in range(1, len(self.levels[factor]) + 1))]
            allowed = [choice for choice in choices if not any(cause <= choice for cause in causes)]
            row = max(allowed, key=lambda choice: sum(pair <= choice for pair in open_))
        return row

    def _causes_in(self, row: Levels) -> list[Levels] | None:
        """The causes among the levels of a row: none if it does not fail; None if it has no answer."""
        factors = sorted(row)
        search = self._search(factors, self.horizon)
        self.rows += 1
        self.log(f"does it fail with {' '.join(' '.join(self._level(*level)) for level in factors)}?")
        fails, causes = None, list[Changes]()
        with contextlib.suppress(InputError, SeedsDisagreeError):  # an invalid row, or no answer over seeds
            fails = search.has_event(frozenset(range(len(factors))), self.problem.seeds[0])
            causes = search.causes().causes if fails else []
        self.log(f"  {'no answer' if fails is None else 'yes' if fails else 'no'}")
        return None if fails is None else [frozenset(factors[i] for i in cause) for cause in causes]

    def _confirmed(self, cause: Levels, horizon: int, reproduced: bool) -> LevelCause:
        factors = sorted(cause)
        search, everything = self._search(factors, horizon), frozenset(range(len(factors)))
        seeds = self.problem.seeds
        with contextlib.suppress(OutOfRunsError):
            search.oracle.run([(everything, seed) for seed in seeds])
        claim = grade_agreeing(search.rate(everything, search.has_event), len(seeds), reproduced)
        return LevelCause(tuple(self._level(*level) for level in factors), claim)

    def _search(self, factors: Sequence[tuple[int, int]], horizon: int) -> SeededSearch:
        problem = self._problem(factors)
        oracle = CellOracle(problem, horizon, self.log, self.budget)
        weights = [1.0] * len(problem.changes)
        return SeededSearch(problem, oracle, problem.seeds[:1], self.event, weights, lambda line: None)

    def _problem(self, factors: Sequence[tuple[int, int]]) -> DiagnosisProblem:
        """The same problem with these levels as the failing ones; all other factors are the reference's."""
        changed = {factor for factor, _ in factors}
        others = [reference for number, (_, reference) in enumerate(self.problem.changes) if number not in changed]

        def plan(levels: Sequence[Overrides], horizon: int, seed: int) -> CellPlan:
            return self.problem.plan([*levels, *others], horizon, seed)

        changes = tuple((self._level(*level), self.problem.changes[level[0]][1]) for level in factors)
        return replace(self.problem, changes=changes, plan=plan, between=((),) * len(changes))

    def _level(self, factor: int, level: int) -> Overrides:
        return self.levels[factor][level - 1]
