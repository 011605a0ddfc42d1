"""Reads and writes `history.parquet`, one row per step of a cell.

NaN (the value was not a number), infinity and null (the value was not measured) stay distinct on disk and in the data
frame. Its columns are Arrow's, so `isna()` is true for null only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nangrid.records.cell import CLOCKS
from nangrid.records.parquet import read_rows, write_rows

if TYPE_CHECKING:
    from pandas import DataFrame
    from pyarrow import Table

HISTORY = "history.parquet"

COLUMNS: dict[str, str] = {
    "step": "int64",
    "loss": "double",
    "grad_norm": "double",
    "lr": "double",
    "max_gradient": "double",
    "max_update": "double",
    **{f"nonfinite_{clock}": "int64" for clock in CLOCKS},
    "eval_loss": "double",
    "new_tokens": "int64",
    "seconds": "double",
}
"""Column -> Arrow type. grad_norm and max_gradient are before clipping; nonfinite_* count values."""


def write_history(directory: Path, rows: Sequence[Mapping[str, float | int | None]]) -> None:
    """Write one row per step, atomically; columns missing from a row are null."""
    if unknown := sorted({key for row in rows for key in row} - COLUMNS.keys()):
        raise ValueError(f"no such history column: {', '.join(unknown)}")
    write_rows(directory / HISTORY, COLUMNS, rows)


def read_history(directory: Path) -> DataFrame:
    """The history as a data frame; RecordError if it is missing, cut short or has other columns."""
    import pandas

    frame: DataFrame = read_table(directory).to_pandas(types_mapper=pandas.ArrowDtype)
    return frame


def read_table(directory: Path) -> Table:
    """The history as an Arrow table, without importing pandas; RecordError as in read_history."""
    return read_rows(directory / HISTORY, COLUMNS)
