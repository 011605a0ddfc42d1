"""Opens the directory of a grid and reads the records of its cells.

<out>/grid.json             {schema, grid_id, created}
<out>/cells/<cell_id>/      result.json, history.parquet, ...
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nangrid.records.atomic import create_bytes, set_damaged_aside
from nangrid.records.autopsy import Autopsy, read_autopsy
from nangrid.records.cell import RESULT, CellRecord, read_record
from nangrid.records.codec import encode
from nangrid.records.errors import InputError, RecordError
from nangrid.records.history import HISTORY, read_table
from nangrid.records.reader import read_json, unreadable
from nangrid.records.safety.files import inside, is_own_folder
from nangrid.records.safety.names import is_name
from nangrid.records.safety.text import say

SCHEMA = 1
GRID = "grid.json"


@dataclass(frozen=True)
class _GridRecord:
    grid_id: str
    created: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class GridDirectory:
    """The directory of one grid."""

    path: Path
    grid_id: str
    """The directory's name and 8 hex digits, created once and shared by every process that opens the directory."""

    @classmethod
    def open(cls, out: str | Path) -> GridDirectory:
        """Open the grid in `out` for writing, creating it if necessary; InputError if that is not possible."""
        path = Path(out).absolute()
        try:
            cells = path / "cells"
            cells.mkdir(parents=True, exist_ok=True)
            if not is_own_folder(cells):
                raise InputError(f"{cells} is a link to another directory: remove it, or give another out=.")
            if not all(os.access(directory, os.W_OK | os.X_OK) for directory in (path, cells)):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            if not (path / GRID).exists():
                _create(path)
        except OSError as error:
            raise InputError(
                f"out={out} cannot be written ({error.strerror}): give a directory that you can write, out=DIRECTORY."
            ) from error
        return cls(path, _read_or_recover(path).grid_id)

    @classmethod
    def at(cls, path: str | Path) -> GridDirectory:
        """Open an existing grid for reading; InputError if there is none."""
        path = Path(path).absolute()
        if not (path / GRID).exists():
            raise InputError(f"{path} is not the directory of a grid (it has no {GRID}): give the out= of one.")
        return cls(path, _read(path / GRID).grid_id)

    def cell(self, cell_id: str) -> Path:
        """The directory of a cell, which need not exist yet."""
        return self.path / "cells" / cell_id

    def cells(self) -> list[Path]:
        """The directories of all cells, finished or not, ordered by cell_id."""
        return sorted(path for path in self._entries() if is_name(path.name) and is_own_folder(path))

    def refused(self) -> list[RecordError]:
        """One error per directory among the cells that is not read: a link to elsewhere, or no name of a cell."""
        read = set(self.cells())
        folders = sorted(path for path in self._entries() if path.is_dir() and path not in read)
        return [
            unreadable(path, "it is a link to another directory" if is_name(path.name) else "no cell has such a name")
            for path in folders
        ]

    def _entries(self) -> list[Path]:
        cells = self.path / "cells"
        try:
            return list(cells.iterdir()) if is_own_folder(cells) else []
        except OSError as error:
            raise unreadable(cells, str(error.strerror), "make it readable") from error

    def records(self) -> tuple[list[CellRecord], list[RecordError]]:
        """The records of all finished cells, ordered by cell_id, and the errors of those that cannot be read."""
        records: list[CellRecord] = []
        errors = self.refused()
        for directory in self.cells():
            try:
                if record := read_cell_record(directory):
                    records.append(record)
            except RecordError as error:
                errors.append(error)
        return records, errors

    def read(self) -> GridRecords:
        """What was recorded of all finished cells, but for their histories."""
        records, untrusted = self.records()
        return GridRecords(records, untrusted, self.autopsies(records))

    def autopsies(self, records: Iterable[CellRecord]) -> dict[str, Autopsy]:
        """cell_id -> autopsy, for the cells that have one; autopsies that cannot be read are skipped."""
        autopsies = {}
        for record in records:
            if record.autopsy:
                with contextlib.suppress(RecordError):
                    autopsies[record.cell_id] = autopsy_of(self.cell(record.cell_id), record)
        return {cell_id: autopsy for cell_id, autopsy in autopsies.items() if autopsy}


@dataclass(frozen=True)
class GridRecords:
    """The records and autopsies of a grid's finished cells."""

    records: list[CellRecord]
    untrusted: list[RecordError]
    """One per record that cannot be read."""
    autopsies: dict[str, Autopsy]
    """By cell_id."""


def read_or_report(directory: Path, report: Callable[[RecordError], None]) -> CellRecord | None:
    """As read_verified, but a record that cannot be trusted is passed to `report` and counts as unfinished."""
    try:
        return read_verified(directory)
    except RecordError as error:
        report(error)
        return None


def read_verified(directory: Path) -> CellRecord | None:
    """A cell's record, after its history and its autopsy have been read and agree with it.

    None if the cell is unfinished, RecordError if any of the three cannot be read or they disagree.
    """
    record = read_cell_record(directory)
    if record is None or record.error:
        return record
    rows = read_table(directory).num_rows
    if rows != record.steps_done:
        raise unreadable(directory / HISTORY, f"it has {rows} steps, but {RESULT} says {record.steps_done}")
    autopsy_of(directory, record)
    return record


def autopsy_of(directory: Path, record: CellRecord) -> Autopsy | None:
    """The autopsy that a cell's record names; None if it names none, RecordError if it cannot be read."""
    if record.autopsy is None:
        return None
    try:
        return read_autopsy(inside(directory, record.autopsy).parent)
    except RecordError:
        raise
    except ValueError as error:
        raise unreadable(directory / RESULT, str(error)) from error


def read_cell_record(directory: Path) -> CellRecord | None:
    """The cell's record alone; None if the cell is unfinished, RecordError also if it is another cell's."""
    record = read_record(directory)
    if record is not None and record.cell_id != directory.name:
        raise unreadable(directory / RESULT, f"it is the record of another cell, {record.cell_id}")
    return record


def _create(path: Path, grid_id: str | None = None) -> None:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = _GridRecord(grid_id or f"{path.name}-{secrets.token_hex(4)}", created)
    create_bytes(path / GRID, json.dumps(encode(record)).encode() + b"\n")


def _read_or_recover(path: Path) -> _GridRecord:
    """The grid's record; a damaged one is set aside and restored if the cells' records agree on the grid's id."""
    try:
        return _read(path / GRID)
    except RecordError:
        known = {record.grid_id for record in GridDirectory(path, "").records()[0]}
        if len(known) != 1:
            raise
        aside = set_damaged_aside(path / GRID)
        say(f"{path / GRID} is damaged: renamed to {aside.name} and restored from its cells.", error=True)
        _create(path, known.pop())
        return _read(path / GRID)


def _read(path: Path) -> _GridRecord:
    record = read_json(path, _GridRecord, SCHEMA)
    if record is None:
        raise unreadable(path, "it is missing")
    return record
