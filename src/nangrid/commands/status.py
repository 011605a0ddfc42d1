"""Shows the progress of a grid from its directory alone, on any machine that can read it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nangrid.commands.exits import exit_code
from nangrid.commands.parser import make_parser
from nangrid.grid.status import DAMAGED, RUNNING, UNFINISHED, WAITING, CellStatus, GridStatus, read_status
from nangrid.records.cell import STATUS_TITLES
from nangrid.records.output.printed import say_json
from nangrid.records.output.results import CellProgress, StatusResult
from nangrid.records.pace import format_duration
from nangrid.reporting.console import CleanConsole
from nangrid.reporting.palette import ERROR, FINITE, NONFINITE, UNTRAINED

EVERY_S = 1.0
QUIET_S = 15.0
"""Seconds without a running cell after which the grid counts as ended: there are gaps between cells."""
STYLES = {
    "finite": FINITE,
    "nonfinite": NONFINITE,
    "error": ERROR,
    "timeout": ERROR,
    DAMAGED: ERROR,
    UNFINISHED: UNTRAINED,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 if the directory is not a grid's."""
    parser = make_parser("status", "Show the progress of a grid, from its directory alone.")
    parser.add_argument("grid", metavar="GRID_DIR", help="the grid's out=, such as outputs/default")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--follow", action="store_true", help="keep the table up to date until no cell is running")
    form.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _show(options.grid, options.follow, options.json))


def _show(path: str, follow: bool, as_json: bool) -> None:
    if as_json:
        say_json(_result(read_status(path)))
    elif follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(path)
    else:
        CleanConsole().print(shown(read_status(path)))


def _result(status: GridStatus) -> StatusResult:
    cells = [
        CellProgress(
            cell.cell_id, cell.title, cell.state, cell.steps_done, cell.horizon,
            cell.progress.loss if cell.progress else None, cell.progress.updated if cell.progress else None,
        )
        for cell in status.cells
    ]  # fmt: skip
    skipped = [str(error) for error in status.skipped]
    return StatusResult(str(status.grid.path), dict(status.counts), cells, status.seconds_left(), skipped)


def _follow(path: str) -> None:
    status = read_status(path)
    last_running = time.monotonic()
    with Live(shown(status), console=CleanConsole(), auto_refresh=False) as live:
        while status.running or time.monotonic() - last_running < QUIET_S:
            time.sleep(EVERY_S)
            status = read_status(path)
            last_running = time.monotonic() if status.running else last_running
            live.update(shown(status), refresh=True)


def shown(status: GridStatus) -> RenderableType:
    """A table of the cells that are not done, what cannot be read, and one line that counts all cells."""
    cells = _cells([cell for cell in status.cells if cell.state not in ("finite", "nonfinite")])
    return Group(cells, *(Text(f"skipped: {error}") for error in status.skipped), _count(status))


def _cells(cells: Sequence[CellStatus]) -> RenderableType:
    if not cells:
        return Text()
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("cell", overflow="fold")
    for heading in ("state", "step", "loss", "updated"):  # only the titles wrap, at the spaces between overrides
        table.add_column(heading, justify="right" if heading in ("step", "loss") else "left", no_wrap=True)
    for cell in sorted(cells, key=lambda cell: (cell.state != RUNNING, cell.state)):
        progress = cell.progress if cell.state in (RUNNING, UNFINISHED) else None
        loss = "" if progress is None or progress.loss is None else f"{progress.loss:.4g}"
        updated = f"{format_duration(time.time() - progress.updated)} ago" if progress else ""
        error = f" {cell.record.error.type}" if cell.record and cell.record.error else ""
        state = Text(cell.state + error, STYLES.get(cell.state, ""))
        table.add_row(Text(cell.title), state, f"{cell.steps_done}/{cell.horizon}", loss, updated)
    return table


def _count(status: GridStatus) -> Text:
    counts = status.counts
    order = ["finite", "nonfinite", "error", "timeout", RUNNING, WAITING, UNFINISHED, DAMAGED]
    counted = ", ".join(f"{counts[state]} {STATUS_TITLES.get(state, state)}" for state in order if counts[state])
    line = f"{status.grid.path}: {len(status.cells)} cells: {counted or 'none'}"
    left = status.seconds_left()
    if left is not None:
        line += f"; about {format_duration(left)} left if all cells reach their horizon"
    elif status.running:
        line += "; no estimate until one run has finished"
    elif status.pending:
        line += "; not running: run the original command to resume"
    return Text(line)
