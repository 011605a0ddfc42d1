"""What did the cell with these changes do? Runs the cells that a search asks for, and remembers.

Every cell is a normal one, kept in the grid's directory: what has been run before, by whatever command, is not run
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nangrid.analysis.causes import WORSE, Event, event_of, late_loss
from nangrid.diagnosis.minimal_sets import Changes
from nangrid.grid.launch import CellsFailedError
from nangrid.grid.local import LocalExecutor
from nangrid.grid.plan import CellPlan
from nangrid.records.autopsy import Autopsy, read_autopsy
from nangrid.records.cell import CellRecord
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory
from nangrid.records.history import read_table

Overrides = tuple[str, ...]
"""The levels of one factor, as they are typed."""


@dataclass(frozen=True)
class DiagnosisProblem:
    """What is to be diagnosed: `changes` turn the reference into the failing cell."""

    changes: tuple[tuple[Overrides, Overrides], ...]
    """Per factor that differs: the failing cell's levels and the reference's."""
    plan: Callable[[Sequence[Overrides], int, int], CellPlan]
    """The cell with these levels, this horizon and this seed; InputError for levels that do not go together."""
    executor: LocalExecutor
    seeds: tuple[int, ...] = (0,)
    """The first is searched with, the others confirm."""
    sides: tuple[str, str] = ("--failing", "--reference")
    """What the two end points are called where they were given."""

    def levels(self, changes: Changes) -> list[Overrides]:
        """The failing cell's levels where there is a change, the reference's elsewhere."""
        return [failing if i in changes else kept for i, (failing, kept) in enumerate(self.changes)]

    @property
    def everything(self) -> Changes:
        """All changes: the failing cell."""
        return frozenset(range(len(self.changes)))


@dataclass(frozen=True)
class CellResult:
    """A cell that was run for the search."""

    plan: CellPlan
    record: CellRecord
    event: Event | None
    autopsy: Autopsy | None
    losses: Sequence[float]
    """A step."""

    def trains(self, reference: CellResult) -> bool:
        """To a loss no worse than the reference's after as many steps of the same batches."""
        steps = min(len(self.losses), len(reference.losses))
        return self.record.trained and late_loss(self.losses, steps) <= WORSE * late_loss(reference.losses, steps)


def meets(answer: CellResult | None, event: Event) -> bool | None:
    """Whether a cell met the event; None if it says nothing: it crashed, or another event came first."""
    if answer is None or answer.event not in (None, event):
        return None
    return answer.event == event


class CellOracle:
    """Cells by their changes and seed, all run to one horizon."""

    def __init__(self, problem: DiagnosisProblem, horizon: int, say: Callable[[str], None]) -> None:
        self.problem = problem
        self.horizon = horizon
        self.say = say
        self.cells: dict[tuple[Changes, int], CellResult | None] = {}

    def look(self, wanted: Iterable[tuple[Changes, int]]) -> list[CellResult | None]:
        """These cells, run side by side where the executor does. None: it cannot be built, or it crashed."""
        wanted = list(wanted)
        plans = {key: plan for key in dict.fromkeys(wanted) if key not in self.cells and (plan := self._plan(key))}
        if plans:
            grid = GridDirectory.open(next(iter(plans.values())).config.out)
            outcome = self.problem.executor.run(list(plans.values()), grid)
            for key, plan in plans.items():
                if plan.cell_id in outcome.stopped:
                    raise CellsFailedError(
                        f"{plan.title} is unfinished ({outcome.stopped[plan.cell_id]}): the same command goes on here."
                    )
                if plan.cell_id in outcome.refusals:
                    self._cannot(key, outcome.refusals[plan.cell_id])
                else:
                    self.cells[key] = self._answered(plan, outcome.records[plan.cell_id])
        return [self.cells[key] for key in wanted]

    def one(self, changes: Changes, seed: int) -> CellResult | None:
        """One cell."""
        return self.look([(changes, seed)])[0]

    def _plan(self, key: tuple[Changes, int]) -> CellPlan | None:
        changes, seed = key
        try:
            return self.problem.plan(self.problem.levels(changes), self.horizon, seed)
        except InputError as error:
            self._cannot(key, str(error))
            return None

    def _answered(self, plan: CellPlan, record: CellRecord) -> CellResult | None:
        if record.error is not None:
            self.say(f"  left out, it crashed: {plan.directory()}")
            return None
        autopsy = read_autopsy((plan.directory() / record.autopsy).parent) if record.autopsy else None
        losses = read_table(plan.directory()).column("loss").to_pylist()
        return CellResult(plan, record, event_of(record, autopsy), autopsy, losses)

    def _cannot(self, key: tuple[Changes, int], why: str) -> None:
        if key[0] in (frozenset(), self.problem.everything):
            raise InputError(why)
        self.say(f"  left out, it cannot be built: {why}")
        self.cells[key] = None
