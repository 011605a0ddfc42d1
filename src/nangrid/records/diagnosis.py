"""What did a search between two cells find? `diagnoses/<failing>-<reference>.json` in the directory of its grid."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nangrid.records.atomic import write_bytes
from nangrid.records.codec import encode
from nangrid.records.errors import RecordError
from nangrid.records.reader import read_json

SCHEMA = 1
DIAGNOSES = "diagnoses"
_DIGITS = 8


@dataclass(frozen=True)
class DiagnosisRecord:
    """Of the last search between these two cells."""

    failing: str
    """Its cell_id."""
    reference: str
    told: list[str]
    """As the terminal had it, line by line."""
    schema: int = SCHEMA


def write_diagnosis(grid: Path, record: DiagnosisRecord) -> None:
    """Keep it in the directory of a grid; an earlier one between the same cells is replaced."""
    folder = grid / DIAGNOSES
    folder.mkdir(exist_ok=True)
    name = f"{record.failing[:_DIGITS]}-{record.reference[:_DIGITS]}.json"
    write_bytes(folder / name, json.dumps(encode(record), indent=1).encode())


def read_diagnoses(grid: Path) -> tuple[list[DiagnosisRecord], list[RecordError]]:
    """Those of a grid, the latest last, and why others cannot be trusted."""
    records: list[DiagnosisRecord] = []
    errors: list[RecordError] = []
    for path in sorted((grid / DIAGNOSES).glob("*.json"), key=lambda path: path.stat().st_mtime):
        try:
            if record := read_json(path, DiagnosisRecord, SCHEMA):
                records.append(record)
        except RecordError as error:
            errors.append(error)
    return records, errors
