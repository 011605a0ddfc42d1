"""Reads and writes `headroom.parquet`: the largest activations and gradients, one row per step, module and kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nangrid.records.parquet import read_rows, write_rows
from nangrid.records.reader import unreadable

if TYPE_CHECKING:
    from pandas import DataFrame

HEADROOM = "headroom.parquet"

LIMITS = {"fp16": 65504.0, "bf16": 3.3895e38, "fp32": 3.4028e38}
"""The largest finite number of each float format."""

COLUMNS = {
    "step": "int64",
    "order": "int64",
    "module": "string",
    "kind": "string",
    "absmax": "double",
    "row": "int64",
    "position": "int64",
    "token": "int64",
    "text": "string",
}
"""Column -> Arrow type. `order` is the module's place in the forward pass. Unknown rows, positions, tokens are -1."""


def write_headroom(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all samples of a cell atomically."""
    write_rows(directory / HEADROOM, COLUMNS, rows)


def read_headroom(directory: Path) -> DataFrame | None:
    """The samples of a cell; None if it took none, RecordError if the file cannot be read."""
    if not (directory / HEADROOM).exists():
        return None
    table = read_rows(directory / HEADROOM, COLUMNS)
    if empty := [name for name in COLUMNS if table.column(name).null_count]:
        raise unreadable(directory / HEADROOM, f"its column {empty[0]} has gaps")
    frame: DataFrame = table.to_pandas()
    return frame
