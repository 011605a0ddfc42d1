"""Trains the cells that a search asks about, and remembers their results.

They are ordinary cells, kept in the grid's directory. A cell that any command has run before is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nangrid.analysis.causes import Event, event_of
from nangrid.analysis.losses import late_loss, no_worse, tolerance
from nangrid.diagnosis.budget import Budget
from nangrid.diagnosis.minimal_sets import Changes, OutOfRunsError
from nangrid.grid.collect import GridOutcome
from nangrid.grid.launch import CellsFailedError
from nangrid.grid.local import LocalExecutor
from nangrid.grid.plan import CellPlan
from nangrid.records.autopsy import Autopsy
from nangrid.records.cell import LOG, CellRecord
from nangrid.records.defaults import MAX_RUNS
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory, autopsy_of
from nangrid.records.history import read_table

Overrides = tuple[str, ...]
"""Levels of one factor, as they are typed."""

CellKey = tuple[Changes, int]
"""Changes to the reference, and a seed."""

Log = Callable[[str], None]
"""Prints one line of progress."""


@dataclass(frozen=True)
class DiagnosisProblem:
    """A failing cell and a reference; `changes` turn the reference into the failing cell."""

    changes: tuple[tuple[Overrides, Overrides], ...]
    """Per factor that differs: the failing cell's levels and the reference's."""
    plan: Callable[[Sequence[Overrides], int, int], CellPlan]
    """Plans a cell with these levels, horizon and seed; InputError for an invalid combination of levels."""
    executor: LocalExecutor
    seeds: tuple[int, ...] = (0,)
    """The search uses the first seed; the others confirm its answers."""
    sides: tuple[str, str] = ("--failing", "--reference")
    """What the user calls the two end points."""
    max_runs: int = MAX_RUNS
    """Runs after which the search ends, and says what it has not decided."""
    between: tuple[tuple[Overrides, ...], ...] = ()
    """Per factor that differs: its levels between the two sides. Empty: no factor has any."""

    def levels(self, changes: Changes) -> list[Overrides]:
        """Levels per factor: the failing cell's where there is a change, the reference's elsewhere."""
        return [failing if i in changes else reference for i, (failing, reference) in enumerate(self.changes)]

    @property
    def all_changes(self) -> Changes:
        """Every change, which gives the failing cell."""
        return frozenset(range(len(self.changes)))


@dataclass(frozen=True)
class CellResult:
    """What one cell of the search did."""

    plan: CellPlan
    record: CellRecord
    event: Event | None
    autopsy: Autopsy | None
    losses: Sequence[float]
    """One per step."""

    def trains(self, reference: CellResult, references: Sequence[CellResult]) -> bool:
        """Whether it trains, to a loss no worse than the reference's after as many steps of the same batches.

        `references` are the reference with every seed so far: the spread of their losses is no difference.
        """
        steps = min(len(self.losses), len(reference.losses))
        allowed = tolerance([late_loss(other.losses, steps) for other in references])
        same = no_worse(late_loss(self.losses, steps), late_loss(reference.losses, steps), allowed)
        return self.record.trained and same

    def has(self, event: Event) -> bool | None:
        """Whether it failed with `event`; None if another event came first, which says nothing about this one."""
        return None if self.event not in (None, event) else self.event == event


class CellOracle:
    """Results of cells by their changes and seed, all with one horizon."""

    def __init__(self, problem: DiagnosisProblem, horizon: int, log: Log, budget: Budget) -> None:
        self.problem = problem
        self.horizon = horizon
        self.log = log
        self.budget = budget
        self.results: dict[CellKey, CellResult | None] = {}
        self.crashes: dict[CellKey, str] = {}
        """What the cells that crashed raised, and where their logs are."""

    def run(self, wanted: Iterable[CellKey]) -> list[CellResult | None]:
        """Results of these cells, in order; those not known yet are trained first. None: it crashed or is invalid.

        OutOfRunsError if not all of them fit into the budget; those that fit are trained.
        """
        keys = list(wanted)
        plans = self._missing_plans(keys)
        affordable = set(self.budget.take(plan.cell_id for plan in plans.values()))
        if allowed := {key: plan for key, plan in plans.items() if plan.cell_id in affordable}:
            grid = GridDirectory.open(next(iter(allowed.values())).config.out)
            self._store(allowed, self.problem.executor.run(list(allowed.values()), grid))
        if len(allowed) < len(plans):
            raise OutOfRunsError
        return [self.results[key] for key in keys]

    def result(self, changes: Changes, seed: int) -> CellResult | None:
        """Result of one cell."""
        return self.run([(changes, seed)])[0]

    def _missing_plans(self, keys: Iterable[CellKey]) -> dict[CellKey, CellPlan]:
        plans = {}
        for key in dict.fromkeys(keys):
            if key not in self.results:
                try:
                    plans[key] = self.problem.plan(self.problem.levels(key[0]), self.horizon, key[1])
                except InputError as error:
                    self._skip(key, str(error))
        return plans

    def _store(self, plans: Mapping[CellKey, CellPlan], outcome: GridOutcome) -> None:
        for key, plan in plans.items():
            if plan.cell_id in outcome.stopped:
                why = outcome.stopped[plan.cell_id]
                raise CellsFailedError(f"{plan.title} is unfinished ({why}): run the same command again to resume.")
            if plan.cell_id in outcome.refusals:
                self._skip(key, outcome.refusals[plan.cell_id])
            else:
                self._note_crash(key, plan, outcome.records[plan.cell_id])
                self.results[key] = self._read(plan, outcome.records[plan.cell_id])

    def _read(self, plan: CellPlan, record: CellRecord) -> CellResult | None:
        if record.error is not None:
            self.log(f"  skipped, crashed: {plan.directory()}")
            return None
        autopsy = autopsy_of(plan.directory(), record)
        losses = read_table(plan.directory()).column("loss").to_pylist()
        return CellResult(plan, record, event_of(record, autopsy), autopsy, losses)

    def _note_crash(self, key: CellKey, plan: CellPlan, record: CellRecord) -> None:
        if record.error is not None:
            last_line = next(iter(reversed(record.error.message.splitlines())), "no message")
            self.crashes[key] = f"{record.error.type}: {last_line} (see {plan.directory() / LOG})"

    def _skip(self, key: CellKey, why: str) -> None:
        if key[0] in (frozenset(), self.problem.all_changes):
            raise InputError(why)
        self.log(f"  skipped, invalid combination: {why}")
        self.results[key] = None


def check_max_runs(max_runs: int) -> None:
    """InputError if the two end points alone need more runs."""
    if max_runs < 2:
        raise InputError(f"max_runs={max_runs} is out of range: give a whole number of at least 2.")


def cell_title(levels: Sequence[Overrides], seed: int, first_seed: int) -> str:
    """Name of a cell of the search: its levels, and its seed unless that is the first one."""
    words = [override for overrides in levels for override in overrides]
    return " ".join([*words, *([f"seed={seed}"] if seed != first_seed else [])])
