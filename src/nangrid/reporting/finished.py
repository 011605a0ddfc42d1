"""Prints what a finished cell or grid shows, and which command to type next."""

from __future__ import annotations

from pathlib import Path

from nangrid.analysis.onsets import onset_pivot, onset_table, write_onsets
from nangrid.records.cell import CellRecord
from nangrid.records.errors import RecordError
from nangrid.records.explain import explain
from nangrid.records.grid import GridDirectory, autopsy_of
from nangrid.records.history import read_history
from nangrid.records.safety.command import typed
from nangrid.records.safety.text import say
from nangrid.reporting.console import CleanConsole
from nangrid.reporting.terminal import cell_summary, grid_summary


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


def print_grid(grid: GridDirectory, records: list[CellRecord]) -> None:
    """Print the onset table of `records`; onsets.csv and onsets.parquet hold every cell of the directory."""
    everything, untrusted = grid.records()
    autopsies = grid.autopsies(everything)
    write_onsets(grid, onset_table(everything, autopsies))
    table = onset_table(records, autopsies)
    console = CleanConsole()
    console.print(grid_summary(table, onset_pivot(table)))
    files = [f"table: {grid.path / 'onsets.csv'}", f"causes and cures: {typed('python -m src.report', grid.path)}"]
    for line in [*(f"skipped: {error}" for error in untrusted), *files]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
