"""Reads the progress of a grid from its directory alone, without writing into it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nangrid.grid.lock import is_held
from nangrid.grid.progress import Progress, read_progress
from nangrid.grid.request import Request, read_request
from nangrid.records.cell import CellRecord
from nangrid.records.errors import RecordError
from nangrid.records.grid import GridDirectory, read_cell_record
from nangrid.records.pace import Pace, pace

Read = TypeVar("Read")

RUNNING, WAITING, UNFINISHED, DAMAGED = "running", "waiting", "unfinished", "damaged"


@dataclass(frozen=True)
class CellStatus:
    """The present state of one cell."""

    cell_id: str
    title: str
    state: str
    """The record's status, or running, waiting (never begun), unfinished (begun, not running) or damaged."""
    horizon: int
    progress: Progress | None
    record: CellRecord | None
    request: Request | None

    @property
    def model(self) -> str:
        """The requested model level; empty without a request."""
        return self.request.model if self.request else ""

    @property
    def steps_done(self) -> int:
        """Optimizer steps taken."""
        return self.record.steps_done if self.record else self.progress.steps_done if self.progress else 0


@dataclass(frozen=True)
class GridStatus:
    """The present state of a grid's cells, ordered by cell_id."""

    grid: GridDirectory
    cells: Sequence[CellStatus]
    skipped: Sequence[RecordError] = ()
    """Why records cannot be read, and directories among the cells that are none."""

    @property
    def counts(self) -> Counter[str]:
        """Number of cells per state."""
        return Counter(cell.state for cell in self.cells)

    @property
    def running(self) -> list[CellStatus]:
        """Cells that some process is running."""
        return [cell for cell in self.cells if cell.state == RUNNING]

    @property
    def pending(self) -> list[CellStatus]:
        """Cells that are still to be run."""
        return [cell for cell in self.cells if cell.state in (WAITING, UNFINISHED, DAMAGED)]

    def seconds_left(self) -> float | None:
        """Seconds until all cells reach their horizons, with as many in parallel as now; None if unknown."""
        if not self.running:
            return None
        records = [cell.record for cell in self.cells if cell.record]
        paces = {model: pace(model, records) for model in {cell.model for cell in self.cells}}
        left = [_seconds_left(cell, paces[cell.model]) for cell in [*self.running, *self.pending]]
        known = [seconds for seconds in left if seconds is not None]
        return sum(known) / len(self.running) if len(known) == len(left) else None


def _seconds_left(cell: CellStatus, expected: Pace | None) -> float | None:
    progress = cell.progress if cell.state == RUNNING else None
    if progress and progress.steps_done:
        step = expected.step if expected else (progress.updated - progress.began) / progress.steps_done
        return (cell.horizon - progress.steps_done) * step
    if expected is None:
        return None
    return max(0.0, expected.cell_seconds(cell.horizon) - (time.time() - progress.began if progress else 0.0))


def read_status(path: str | Path) -> GridStatus:
    """The status of the grid in directory `path`; InputError if there is none."""
    grid = GridDirectory.at(path)
    skipped = grid.refused()
    return GridStatus(grid, [_cell(directory, skipped) for directory in grid.cells()], skipped)


def _readable(read: Callable[[Path], Read | None], directory: Path, skipped: list[RecordError]) -> Read | None:
    try:
        return read(directory)
    except RecordError as error:
        skipped.append(error)
        return None


def _cell(directory: Path, skipped: list[RecordError]) -> CellStatus:
    """The state of a cell; the errors of its records that cannot be read are added to `skipped`."""
    held = is_held(directory)
    request = _readable(read_request, directory, skipped)
    known = len(skipped)
    record = _readable(read_cell_record, directory, skipped)
    damaged = len(skipped) > known
    progress = read_progress(directory)
    if record and (request is None or record.error or not record.censored or record.horizon >= request.horizon):
        state = record.status
    else:
        state = UNFINISHED if progress else WAITING
    state = RUNNING if held else DAMAGED if damaged else state
    title = request.title if request else " ".join(record.overrides) if record else directory.name
    horizon = request.horizon if request else record.horizon if record else 0
    return CellStatus(directory.name, title, state, horizon, progress, record, request)
