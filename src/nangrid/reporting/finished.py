"""Prints what a finished cell or grid shows, and which command to type next."""

from __future__ import annotations

from pathlib import Path

from nangrid.analysis.evidence import Judged as Judged
from nangrid.analysis.evidence import judge
from nangrid.analysis.onsets import onset_pivot, onset_table, write_onsets
from nangrid.analysis.verdict import event_cards, paragraph
from nangrid.records.cell import CellRecord
from nangrid.records.errors import RecordError
from nangrid.records.explain import explain
from nangrid.records.grid import GridDirectory, autopsy_of
from nangrid.records.history import read_history
from nangrid.records.safety.command import typed
from nangrid.records.safety.text import say
from nangrid.reporting.console import CleanConsole
from nangrid.reporting.terminal import cell_summary, grid_summary

_MOST_JUDGED = 1000
"""Cells up to which the end of a grid tells causes and cures; the work grows with the square of their number."""


def print_cell(record: CellRecord, directory: Path) -> None:
    """Print one cell's summary; for a failing one its autopsy and the command that tests a fix."""
    try:
        history = read_history(directory)
    except RecordError:
        history = None  # a cell that crashed has none
    say(cell_summary(record, history, directory))
    if autopsy := autopsy_of(directory, record):
        say(explain(autopsy))
        override = next((s.override for s in autopsy.suggestions if s.override), "LEVELS")
        say(f"  test a fix on this step: {typed('python -m src.replay', directory, override)}")
        say(f"  how sure this is, and what was ruled out: {typed('python -m src.why', directory)}")


def print_grid(grid: GridDirectory, records: list[CellRecord]) -> Judged | None:
    """Print the onset table of `records`; onsets.csv and onsets.parquet hold every cell of the directory.

    What all cells of the directory show is returned; None if they are too many.
    """
    read = grid.read()
    write_onsets(grid, onset_table(read.records, read.autopsies))
    table = onset_table(records, read.autopsies)
    console = CleanConsole()
    console.print(grid_summary(table, onset_pivot(table)))
    judged = judge(grid, read=read) if 0 < len(read.records) <= _MOST_JUDGED else None
    if judged:
        cards = event_cards(judged.grid, judged.chosen)
        console.print(paragraph(judged.records, cards), markup=False, highlight=False)
    why, report = (typed(f"python -m src.{name}", grid.path) for name in ("why", "report"))
    files = ["", f"table: {grid.path / 'onsets.csv'}", f"the page: {report}", f"where, why, what to change: {why}"]
    for line in [*(f"skipped: {error}" for error in read.untrusted), *files]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return judged
