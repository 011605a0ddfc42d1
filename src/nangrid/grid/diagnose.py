"""Which of the levels that tell a failing cell from a training one bring the event about, and which cure it?

Each question of the search is a cell, run like any other and kept in the grid's directory: what has been run
before, by whatever command, is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nangrid.analysis.causes import ENOUGH_STEPS, Event, event_of, no_worse
from nangrid.grid.launch import CellsFailedError
from nangrid.grid.plan import CellPlan
from nangrid.grid.schedule import Isolated
from nangrid.records.autopsy import read_autopsy
from nangrid.records.cell import CellRecord
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory
from nangrid.search.minimal import Changes, Found, NotMonotoneError, search

Overrides = tuple[str, ...]
"""The levels of one factor, as they are typed."""


@dataclass(frozen=True)
class Question:
    """What is to be diagnosed: `changes` turn the reference into the failing cell."""

    changes: tuple[tuple[Overrides, Overrides], ...]
    """Per factor that differs: the failing cell's levels and the reference's."""
    plan: Callable[[Sequence[Overrides], int], CellPlan]
    """The cell with these levels and this horizon."""
    crew: Isolated

    def levels(self, changes: Changes) -> list[Overrides]:
        """The failing cell's levels where there is a change, the reference's elsewhere."""
        return [failing if i in changes else kept for i, (failing, kept) in enumerate(self.changes)]

    @property
    def everything(self) -> Changes:
        """All changes: the failing cell."""
        return frozenset(range(len(self.changes)))


@dataclass(frozen=True)
class Answered:
    """A cell that was run for the search."""

    changes: Changes
    record: CellRecord
    event: Event | None


@dataclass(frozen=True)
class Diagnosis:
    """What the search found, and every cell that it looked at."""

    event: Event
    onset: int
    causes: Found
    """Of the event."""
    cures: Found
    """Of not training, by whatever event: a change that only makes room for another event cures nothing."""
    cells: dict[Changes, Answered]
    horizon: int
    not_monotone: NotMonotoneError | None


class _Laboratory:
    """Runs the cells that the search asks for."""

    def __init__(self, question: Question, horizon: int) -> None:
        self.question = question
        self.horizon = horizon
        self.cells: dict[Changes, Answered] = {}

    def look(self, *several: Changes) -> list[Answered]:
        """Run these cells, side by side where the crew does, unless they have been run."""
        new = {changes: self._plan(changes) for changes in several if changes not in self.cells}
        if new:
            grid = GridDirectory.open(next(iter(new.values())).config.out)
            outcome = self.question.crew.run(list(new.values()), grid)
            if outcome.refusals:
                raise InputError(next(iter(outcome.refusals.values())))
            for changes, plan in new.items():
                record = outcome.records.get(plan.cell_id)
                if record is None or record.error is not None:
                    raise CellsFailedError(
                        f"{plan.title} did not end, see {plan.directory()}: nothing can be concluded."
                    )
                autopsy = read_autopsy((plan.directory() / record.autopsy).parent) if record.autopsy else None
                self.cells[changes] = Answered(changes, record, event_of(record, autopsy))
        return [self.cells[changes] for changes in several]

    def _plan(self, changes: Changes) -> CellPlan:
        return self.question.plan(self.question.levels(changes), self.horizon)


def diagnose(question: Question, horizon: int, say: Callable[[str], None]) -> Diagnosis:
    """All minimal causes and cures of the failing cell's event. InputError if the two end points are none.

    A cell is run to the horizon, or to ENOUGH_STEPS times the failing onset where that is more: what is still
    finite there counts as not failing.
    """
    laboratory = _Laboratory(question, horizon)
    failing, reference = laboratory.look(question.everything, frozenset())
    event = _check_end_points(failing, reference, horizon)
    onset = failing.record.onset.step if failing.record.onset else 0
    say(f"{event} at step {onset}: {2 ** len(question.changes)} combinations lie between the two")
    if ENOUGH_STEPS * onset > horizon:
        laboratory = _Laboratory(question, ENOUGH_STEPS * onset)
        failing, reference = laboratory.look(question.everything, frozenset())
        _check_end_points(failing, reference, laboratory.horizon)

    def meets(changes: Changes) -> bool:
        say(f"does it come about by {_typed(question, changes)} alone?")
        (answer,) = laboratory.look(changes)
        say("  yes" if answer.event == event else f"  no: {answer.event or 'finite'}")
        return answer.event == event

    def fails(changes: Changes) -> bool:
        known = changes in laboratory.cells
        (answer,) = laboratory.look(changes)
        trains = _trains(answer.record, reference.record)
        if not known:
            say(f"does it train with {_typed(question, changes)}?")
            say("  yes" if trains else f"  no: {answer.event or 'its loss is worse than the reference'}")
        return not trains

    causes, clash = _search(question, meets)
    cures, other_clash = _search(question, fails)
    return Diagnosis(event, onset, causes, cures, laboratory.cells, laboratory.horizon, clash or other_clash)


def _search(question: Question, enough: Callable[[Changes], bool]) -> tuple[Found, NotMonotoneError | None]:
    try:
        return search(len(question.changes), enough), None
    except NotMonotoneError as clash:
        from nangrid.search.exhaustive import exhaust

        return exhaust(len(question.changes), enough), clash


def _check_end_points(failing: Answered, reference: Answered, horizon: int) -> Event:
    if failing.event is None:
        raise InputError(f"--failing does not fail in {horizon} steps: give a longer horizon=, or levels that fail.")
    if reference.event is not None:
        raise InputError(f"--reference fails too ({reference.event}): give levels that train.")
    return failing.event


def _trains(record: CellRecord, reference: CellRecord) -> bool:
    """To a loss no worse than the reference's."""
    loss, bound = record.trains.loss_last, reference.trains.loss_last
    return record.trained and loss is not None and bound is not None and no_worse(loss, bound)


def _typed(question: Question, changes: Changes) -> str:
    return " ".join(" ".join(question.changes[i][0]) for i in sorted(changes))
