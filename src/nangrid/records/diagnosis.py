"""Defines `diagnoses/<failing>-<reference>.json`, the result of a search between two cells of a grid."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nangrid.records.atomic import set_damaged_aside, write_bytes
from nangrid.records.codec import encode
from nangrid.records.errors import RecordError
from nangrid.records.reader import read_json
from nangrid.records.safety.files import is_own_folder

SCHEMA = 4
DIAGNOSES = "diagnoses"
_DIGITS = 8


@dataclass(frozen=True)
class ClaimRecord:
    """A cause or a cure that the search claims."""

    kind: str
    """cause, or cure."""
    levels: list[str]
    """As they are typed."""
    grade: str
    """proven; could still be chance; undecided."""
    count: int
    """Seeds that fail with a cause, or train with a cure."""
    seeds: int
    """Seeds that were run and have an answer."""
    cells: list[str]
    """The cell_id of each of these runs."""


@dataclass(frozen=True)
class DiagnosisRecord:
    """The latest search between two cells."""

    failing: str
    """The cell_id of the failing cell."""
    reference: str
    """The cell_id of the reference cell."""
    lines: list[str]
    """The result as it was printed in the terminal."""
    claims: list[ClaimRecord]
    """Causes first; empty in a record of an earlier release."""
    schema: int = SCHEMA


def write_diagnosis(grid: Path, record: DiagnosisRecord) -> None:
    """Write the record into the directory of a grid, replacing an earlier one of the same two cells."""
    folder = grid / DIAGNOSES
    if os.path.lexists(folder) and not is_own_folder(folder):  # a link out of the grid, or no directory
        set_damaged_aside(folder)
    folder.mkdir(exist_ok=True)
    name = f"{record.failing[:_DIGITS]}-{record.reference[:_DIGITS]}.json"
    write_bytes(folder / name, json.dumps(encode(record), indent=1).encode())


def read_diagnoses(grid: Path) -> tuple[list[DiagnosisRecord], list[RecordError]]:
    """The diagnoses of a grid, the latest last, and the errors of those that cannot be read."""
    records: list[DiagnosisRecord] = []
    errors: list[RecordError] = []
    folder = grid / DIAGNOSES
    paths = folder.glob("*.json") if is_own_folder(folder) else ()
    for path in sorted(paths, key=lambda path: path.lstat().st_mtime):
        try:
            if record := read_json(
                path, DiagnosisRecord, SCHEMA, {1: _from_schema_1, 2: _from_schema_2, 3: _from_schema_3}
            ):
                records.append(record)
        except RecordError as error:
            errors.append(error)
    return records, errors


def _from_schema_1(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "told"} | {"lines": record["told"]}


def _from_schema_2(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"claims": []}


def _from_schema_3(record: dict[str, Any]) -> dict[str, Any]:
    reworded = {"seen, not told from chance": "could still be chance"}
    claims = [claim | {"grade": reworded.get(claim["grade"], claim["grade"])} for claim in record["claims"]]
    return record | {"claims": claims}
