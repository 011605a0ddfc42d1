"""In what order are the cells run, and what becomes of each?"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import wait

from nangrid.grid.child import HELD, REFUSED
from nangrid.grid.display import GridDisplay, outcome
from nangrid.grid.failure import failed_record
from nangrid.grid.isolation import GRACE_S, CellProcess, start, stop
from nangrid.grid.lock import acquire, is_held, release
from nangrid.grid.plan import CellPlan, is_done
from nangrid.records.cell import CellRecord, read_record, write_record
from nangrid.records.grid import GridDirectory

TICK_S = 0.2


@dataclass
class GridOutcome:
    """What a grid came to."""

    records: dict[str, CellRecord] = field(default_factory=dict)
    """By cell_id."""
    refusals: dict[str, str] = field(default_factory=dict)
    """Cells that could not be built as asked, by cell_id, and why; they have no record."""


def run_grid(plans: list[CellPlan], grid: GridDirectory, n_jobs: int, timeout_s: float | None = None) -> GridOutcome:
    """Run the cells that are not done, `n_jobs` side by side, and return when all have ended.

    A cell that raises, dies or overruns `timeout_s` gets a record that says so, and the others go on. On
    Ctrl-C the running cells are stopped and stay unfinished.
    """
    with GridDisplay(len(plans)) as display:
        schedule = _Schedule(grid, n_jobs, timeout_s, display)
        try:
            schedule.run(plans)
        finally:
            stop(schedule.running)
    return schedule.outcome


class _Schedule:
    def __init__(self, grid: GridDirectory, n_jobs: int, timeout_s: float | None, display: GridDisplay) -> None:
        self.grid = grid
        self.n_jobs = n_jobs
        self.timeout_s = timeout_s
        self.display = display
        self.outcome = GridOutcome()
        self.waiting: deque[CellPlan] = deque()
        self.running: list[CellProcess] = []
        self.elsewhere: list[CellPlan] = []
        """Cells that another launcher runs."""

    def run(self, plans: list[CellPlan]) -> None:
        for plan in plans:
            record = read_record(plan.directory())
            if record and is_done(plan, record):
                self._keep(plan, record)
            else:
                self.waiting.append(plan)
        while self.waiting or self.running or self.elsewhere:
            self._start_waiting()
            self._wait_a_tick()
            self._settle_running()
            self._settle_elsewhere()

    def _start_waiting(self) -> None:
        while self.waiting and len(self.running) < self.n_jobs:
            plan = self.waiting.popleft()
            self.display.begin(plan)
            self.running.append(start(plan, self.grid.grid_id))

    def _wait_a_tick(self) -> None:
        if self.running:
            wait([cell.process.sentinel for cell in self.running], timeout=TICK_S)
        else:
            time.sleep(TICK_S)
        for plan in [*(cell.plan for cell in self.running), *self.elsewhere]:
            self.display.refresh(plan)

    def _settle_running(self) -> None:
        for cell in list(self.running):
            if self.timeout_s is not None and cell.seconds > self.timeout_s:
                stop([cell])
                self._settle(cell, "timeout", "TimeoutError", f"stopped after timeout_s={self.timeout_s:g}")
            elif not cell.process.is_alive():
                self._settle(cell, "error", "ProcessDied", cell.ending())

    def _settle(self, cell: CellProcess, status: str, type_name: str, message: str) -> None:
        """Take an ended cell's answer; failing that, write the record that it could not write itself."""
        self.running.remove(cell)
        kind, sentence = cell.reply()
        if kind == REFUSED:
            self._refuse(cell.plan, sentence)
        elif kind == HELD or (record := self._record_of(cell, status, type_name, message)) is None:
            self.elsewhere.append(cell.plan)
        else:
            self._keep(cell.plan, record)

    def _record_of(self, cell: CellProcess, status: str, type_name: str, message: str) -> CellRecord | None:
        """The record of a cell whose process is gone; None if another launcher has taken it over."""
        lock = acquire(cell.plan.directory(), timeout_s=GRACE_S)
        if lock is None:
            return None
        try:
            record = read_record(cell.plan.directory())
            if record is None:
                record = failed_record(cell.plan, self.grid.grid_id, status, type_name, message, cell.seconds)
                write_record(cell.plan.directory(), record)
            return record
        finally:
            release(lock)

    def _settle_elsewhere(self) -> None:
        for plan in list(self.elsewhere):
            if is_held(plan.directory()):
                continue
            self.elsewhere.remove(plan)
            record = read_record(plan.directory())
            if record and is_done(plan, record, resume="unfinished"):
                self._keep(plan, record)
            else:
                self.waiting.append(plan)

    def _keep(self, plan: CellPlan, record: CellRecord) -> None:
        self.outcome.records[plan.cell_id] = record
        self.display.finish(plan, outcome(plan, record))

    def _refuse(self, plan: CellPlan, sentence: str) -> None:
        self.outcome.refusals[plan.cell_id] = sentence
        self.display.finish(plan, "cannot be built as asked")
