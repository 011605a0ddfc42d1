"""Shows a running grid: one line per finished cell, and in a terminal one progress bar per running cell."""

from __future__ import annotations

import contextlib
import os
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from nangrid.grid.plan import CellPlan
from nangrid.grid.progress import read_progress
from nangrid.records.cell import LOG, CellRecord
from nangrid.reporting.console import CleanConsole

NOTEBOOK = "JPY_PARENT_PID"
"""Variable of commands that a notebook starts. Their output looks like a terminal, but its cursor does not move."""
_REASON = 200
"""Characters of an error that a cell's line shows; the log has the rest."""


class _LenientConsole(CleanConsole):
    """A console that goes silent when its output is closed: the grid goes on unseen."""

    def on_broken_pipe(self) -> None:
        """Called by rich, whose own method also exits."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


class GridDisplay:
    """Shows the cells of one grid; bars only if standard output is a terminal that is no notebook's."""

    def __init__(self, total: int, console: CleanConsole | None = None) -> None:
        self._console = console or _LenientConsole()
        self._total = total
        self._finished = 0
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            # The title gives way where the terminal is narrow: bar, steps and loss are what moves.
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            expand=True,
            refresh_per_second=2,
            disable=not self._console.is_terminal or NOTEBOOK in os.environ,
        )
        self._all = self._progress.add_task("grid", total=total, state="cells")

    def __enter__(self) -> GridDisplay:
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        with contextlib.suppress(OSError):
            self._progress.stop()

    def begin(self, plan: CellPlan) -> None:
        """Show a cell that has been started, here or by another launcher."""
        if plan.cell_id not in self._bars:
            self._bars[plan.cell_id] = self._progress.add_task(plan.title, total=plan.config.horizon, state="setup")

    def refresh(self, plan: CellPlan) -> None:
        """Update the bar of a running cell."""
        if self._progress.disable:
            return
        progress = read_progress(plan.directory())
        if progress and progress.loss is not None:
            state = f"loss {progress.loss:.4g}"
            self._progress.update(self._bars[plan.cell_id], completed=progress.steps_done, state=state)

    def finish(self, plan: CellPlan, outcome: str) -> None:
        """Print how a cell ended, and remove its bar."""
        self._finished += 1
        if bar := self._bars.pop(plan.cell_id, None):
            self._progress.remove_task(bar)
        self._progress.update(self._all, completed=self._finished)
        self.say(f"cell {self._finished}/{self._total} {plan.title}: {outcome}")

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        try:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        except OSError:  # a full disk behind `> FILE`; what cells need of it is theirs to report
            self._console.quiet = True


def describe(plan: CellPlan, record: CellRecord) -> str:
    """How a cell ended, in a few words."""
    if record.onset:
        loss = record.clocks["loss"]
        later = f", loss at step {loss}" if loss is not None and record.onset.clock != "loss" else ""
        return f"non-finite at step {record.onset.step} ({record.onset.clock}{later})"
    if record.error:
        why = record.error.message.partition("\n")[0][:_REASON]
        return f"{record.status}, {why} (see {plan.directory() / LOG})"
    return f"finite for {record.steps_done} steps"
