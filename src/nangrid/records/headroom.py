"""How large did activations and gradients become in a cell? `headroom.parquet`, a row a step, module and kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nangrid.records.parquet import read_rows, write_rows

if TYPE_CHECKING:
    from pandas import DataFrame

HEADROOM = "headroom.parquet"

LIMITS = {"fp16": 65504.0, "bf16": 3.3895e38, "fp32": 3.4028e38}
"""The largest number of each float format."""

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
"""Column -> Arrow type. `order` is that of the forward pass; row, position and token are -1 where not known."""


def write_headroom(directory: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all looks of a cell, atomically."""
    write_rows(directory / HEADROOM, COLUMNS, rows)


def read_headroom(directory: Path) -> DataFrame | None:
    """What was seen; None for a cell that did not look, RecordError for a file that cannot be trusted."""
    if not (directory / HEADROOM).exists():
        return None
    frame: DataFrame = read_rows(directory / HEADROOM, COLUMNS).to_pandas()
    return frame
