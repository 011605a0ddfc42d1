"""Collects the outcome of each cell of a grid, whichever process or machine ran it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nangrid.grid.display import GridDisplay, describe
from nangrid.grid.exit_reason import ExitReason, failed_record
from nangrid.grid.lock import ATTEMPTS, acquire, is_held, release
from nangrid.grid.plan import CellPlan, is_done
from nangrid.grid.request import write_request
from nangrid.grid.worker import Reply, ReplyKind
from nangrid.records.cell import CellRecord, write_record
from nangrid.records.errors import RecordError
from nangrid.records.grid import GridDirectory, read_or_report

GRACE_S = 5.0
"""Seconds that an ended process may take to release the lock of its cell."""


@dataclass
class GridOutcome:
    """How the cells of a grid ended."""

    records: dict[str, CellRecord] = field(default_factory=dict)
    """By cell_id."""
    refusals: dict[str, str] = field(default_factory=dict)
    """Why cells could not be built as requested, by cell_id; they have no record."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Why cells are unfinished (killed from outside, a full disk), by cell_id."""
    ran: set[str] = field(default_factory=set)
    """The cells that were not done before, by cell_id."""


class Collector:
    """Collects the records of a grid's cells, and writes those that a cell could not write itself."""

    def __init__(self, grid: GridDirectory, display: GridDisplay) -> None:
        self.grid = grid
        self.display = display
        self.outcome = GridOutcome()
        self.running_elsewhere: list[CellPlan] = []
        """Cells that another launcher is running."""

    def still_to_run(self, plans: Sequence[CellPlan]) -> list[CellPlan]:
        """Store the records of the cells that are done; return the others, their requests written."""
        waiting = []
        for plan in plans:
            record = self._trusted(plan)
            if record and is_done(plan, record):
                self._store(plan, record)
            else:
                write_request(plan, self.grid.grid_id)
                self.outcome.ran.add(plan.cell_id)
                waiting.append(plan)
        return waiting

    def collect(self, plan: CellPlan, reply: Reply, reason: ExitReason, seconds: float) -> None:
        """Store the outcome of an ended cell; `reason` counts where it left neither a reply nor a record."""
        match reply.kind:
            case ReplyKind.REFUSED:
                self.outcome.refusals[plan.cell_id] = reply.message
                self.display.finish(plan, "cannot be built as requested")
            case ReplyKind.HELD:
                self.running_elsewhere.append(plan)
            case ReplyKind.STOPPED:
                self._record_failure(plan, ExitReason.stopped(reply.message), seconds)
            case ReplyKind.DONE:
                self._record_failure(plan, reason, seconds)

    def collect_elsewhere(self) -> list[CellPlan]:
        """Store what other launchers have finished; return the cells that they gave up, to be run here."""
        abandoned = []
        for plan in [plan for plan in self.running_elsewhere if not is_held(plan.directory())]:
            self.running_elsewhere.remove(plan)
            record = self._trusted(plan)
            if record and is_done(plan, record, resume="unfinished"):
                self._store(plan, record)
            else:
                abandoned.append(plan)
        return abandoned

    def _record_failure(self, plan: CellPlan, reason: ExitReason, seconds: float) -> None:
        """Write the record of a failure, unless the cell has a record or is unfinished."""
        lock = acquire(plan.directory(), timeout_s=GRACE_S)
        if lock is None:
            self.running_elsewhere.append(plan)  # another launcher has taken it over
            return
        try:
            record = self._trusted(plan)
            if record is None and reason.status:
                record = failed_record(plan, self.grid.grid_id, reason, seconds)
                write_record(plan.directory(), record)
        finally:
            release(lock)
        if record:
            self._store(plan, record)
        else:
            self.outcome.stopped[plan.cell_id] = reason.message
            self.display.finish(plan, f"unfinished, {reason.message}")

    def _trusted(self, plan: CellPlan) -> CellRecord | None:
        def report(error: RecordError) -> None:
            self.display.say(f"{plan.title} runs again; its old record moves to {ATTEMPTS}/: {error}")

        return read_or_report(plan.directory(), report)

    def _store(self, plan: CellPlan, record: CellRecord) -> None:
        self.outcome.records[plan.cell_id] = record
        self.display.finish(plan, describe(plan, record))
