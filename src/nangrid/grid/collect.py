"""What becomes of each cell of a grid, by whatever process or machine it was run?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nangrid.grid.display import GridDisplay, outcome
from nangrid.grid.ending import ExitReason, failed_record
from nangrid.grid.lock import ATTEMPTS, acquire, is_held, release
from nangrid.grid.plan import CellPlan, is_done
from nangrid.grid.request import write_request
from nangrid.grid.worker import HELD, REFUSED, STOPPED, Reply
from nangrid.records.cell import CellRecord, write_record
from nangrid.records.errors import RecordError
from nangrid.records.grid import GridDirectory, read_or_report

GRACE_S = 5.0
"""How long an ended process may take to let go of its cell."""


@dataclass
class GridOutcome:
    """What a grid came to."""

    records: dict[str, CellRecord] = field(default_factory=dict)
    """By cell_id."""
    refusals: dict[str, str] = field(default_factory=dict)
    """Cells that could not be built as asked, by cell_id, and why; they have no record."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Cells that were killed from outside or met a full disk, by cell_id, and how; they are unfinished."""


class Collector:
    """Keeps the records of a grid's cells, and writes those that a cell could not write itself."""

    def __init__(self, grid: GridDirectory, display: GridDisplay) -> None:
        self.grid = grid
        self.display = display
        self.outcome = GridOutcome()
        self.running_elsewhere: list[CellPlan] = []
        """Cells that another launcher runs."""

    def still_to_run(self, plans: Sequence[CellPlan]) -> list[CellPlan]:
        """Keep the records of the cells that are done; the others' requests are written."""
        waiting = []
        for plan in plans:
            record = self._trusted(plan)
            if record and is_done(plan, record):
                self._store(plan, record)
            else:
                write_request(plan, self.grid.grid_id)
                waiting.append(plan)
        return waiting

    def collect(self, plan: CellPlan, reply: Reply, ending: ExitReason, seconds: float) -> None:
        """Take an ended cell's answer; failing that, conclude from how it ended."""
        kind, sentence = reply
        if kind == REFUSED:
            self.outcome.refusals[plan.cell_id] = sentence
            self.display.finish(plan, "cannot be built as asked")
        elif kind == HELD:
            self.running_elsewhere.append(plan)
        else:
            self._record_failure(plan, ExitReason(None, "Stopped", sentence) if kind == STOPPED else ending, seconds)

    def collect_elsewhere(self) -> list[CellPlan]:
        """Keep what other launchers have finished; the cells that they gave up are to be run after all."""
        given_up = []
        for plan in [plan for plan in self.running_elsewhere if not is_held(plan.directory())]:
            self.running_elsewhere.remove(plan)
            record = self._trusted(plan)
            if record and is_done(plan, record, resume="unfinished"):
                self._store(plan, record)
            else:
                given_up.append(plan)
        return given_up

    def _record_failure(self, plan: CellPlan, ending: ExitReason, seconds: float) -> None:
        lock = acquire(plan.directory(), timeout_s=GRACE_S)
        if lock is None:
            self.running_elsewhere.append(plan)  # another launcher has taken it over
            return
        try:
            record = self._trusted(plan)
            if record is None and ending.status:
                record = failed_record(plan, self.grid.grid_id, ending, seconds)
                write_record(plan.directory(), record)
        finally:
            release(lock)
        if record:
            self._store(plan, record)
        else:
            self.outcome.stopped[plan.cell_id] = ending.message
            self.display.finish(plan, f"unfinished, {ending.message}")

    def _trusted(self, plan: CellPlan) -> CellRecord | None:
        def report(error: RecordError) -> None:
            self.display.say(f"{plan.title} runs again, its record is kept in {ATTEMPTS}/: {error}")

        return read_or_report(plan.directory(), report)

    def _store(self, plan: CellPlan, record: CellRecord) -> None:
        self.outcome.records[plan.cell_id] = record
        self.display.finish(plan, outcome(plan, record))
