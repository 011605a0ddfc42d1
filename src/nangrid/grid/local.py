"""Runs the cells of a grid on this machine, a fixed number of them in parallel."""

from __future__ import annotations

import math
import resource
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from nangrid.grid.collect import Collector, GridOutcome
from nangrid.grid.display import GridDisplay
from nangrid.grid.exit_reason import ExitReason
from nangrid.grid.plan import CellPlan
from nangrid.grid.process import CellProcess, StartError, start, stop, warm_up
from nangrid.grid.worker import Reply
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory

TICK_S = 0.2
LEAST_FILES = 20
"""Files that launcher and cells have open; the fork server dies with a traceback when it lacks some."""
UNGUARDED = 97
"""Exit code of a cell's process in which the user's script started a search: it is imported there."""


@dataclass(frozen=True)
class LocalExecutor:
    """Runs each cell in its own process on this machine, `n_jobs` of them in parallel."""

    n_jobs: Any = 1
    timeout_s: Any = None

    def check(self) -> None:
        """InputError for a number out of range, or for a limit of the shell under which no cell can run."""
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files < LEAST_FILES:
            raise InputError(
                f"Only {files} files may be open (ulimit -n), but a cell needs {LEAST_FILES}: raise the limit."
            )
        if not isinstance(self.n_jobs, int) or self.n_jobs < 1:
            raise InputError(f"hydra.launcher.n_jobs={self.n_jobs} is out of range: give a whole number of at least 1.")
        if self.timeout_s is None:
            return
        if not isinstance(self.timeout_s, int | float) or not math.isfinite(self.timeout_s) or self.timeout_s <= 0:
            raise InputError(
                f"hydra.launcher.timeout_s={self.timeout_s} is out of range: give seconds above 0, or null."
            )

    @property
    def max_parallel(self) -> int:
        """Cells that run in parallel."""
        return int(self.n_jobs)

    def warm_up(self) -> None:
        """Begin with the imports while the other cells are composed."""
        warm_up()

    def run(self, plans: Sequence[CellPlan], grid: GridDirectory) -> GridOutcome:
        """Run the cells that are not done and return when all have ended.

        A cell that raises, dies, runs out of memory or exceeds its time gets a record that says so, and the others
        continue. A cell that is killed from outside stays unfinished, as do the running ones on Ctrl-C.
        """
        with GridDisplay(len(plans)) as display:
            schedule = _Schedule(Collector(grid, display), self.n_jobs, self.timeout_s)
            try:
                schedule.run(plans)
            finally:
                stop(schedule.running)
        return schedule.collector.outcome


class _Schedule:
    def __init__(self, collector: Collector, n_jobs: int, timeout_s: float | None) -> None:
        self.collector = collector
        self.n_jobs = n_jobs
        self.timeout_s = timeout_s
        self.waiting: deque[CellPlan] = deque()
        self.running: list[CellProcess] = []

    def run(self, plans: Sequence[CellPlan]) -> None:
        self.waiting.extend(self.collector.still_to_run(plans))
        while self.waiting or self.running or self.collector.running_elsewhere:
            self._start_waiting()
            self._wait_a_tick()
            self._collect_ended()
            self.waiting.extend(self.collector.collect_elsewhere())

    def _start_waiting(self) -> None:
        while self.waiting and len(self.running) < self.n_jobs:
            plan = self.waiting.popleft()
            self.collector.display.begin(plan)
            try:
                self.running.append(start(plan, self.collector.grid.grid_id))
            except StartError as error:
                # The others would not start either, and each attempt takes seconds.
                for unstarted in (plan, *self.waiting):
                    self.collector.collect(unstarted, Reply(), ExitReason.stopped(str(error)), 0.0)
                self.waiting.clear()

    def _wait_a_tick(self) -> None:
        if self.running:
            wait([cell.process.sentinel for cell in self.running], timeout=TICK_S)
        else:
            time.sleep(TICK_S)
        for plan in [*(cell.plan for cell in self.running), *self.collector.running_elsewhere]:
            self.collector.display.refresh(plan)

    def _collect_ended(self) -> None:
        for cell in list(self.running):
            # First, because a launcher that was itself stopped for a while finds cells that ended long ago.
            if not cell.is_alive():
                self.running.remove(cell)
                _refuse_unguarded(cell)
                self.collector.collect(cell.plan, cell.reply(), cell.exit_reason(), cell.seconds)
            elif self.timeout_s is not None and cell.seconds > self.timeout_s:
                stop([cell])
                reason = ExitReason("timeout", "TimeoutError", f"stopped after timeout_s={self.timeout_s:g}")
                self.running.remove(cell)
                self.collector.collect(cell.plan, Reply(), reason, cell.seconds)


def _refuse_unguarded(cell: CellProcess) -> None:
    if cell.process.exitcode == UNGUARDED:
        raise InputError(
            'nangrid.diagnose is called whenever the script is imported: put the call under if __name__ == "__main__":'
        )
