"""What did every step of a cell look like? `history.parquet`, one row a step.

NaN (the value was not a number), infinity and null (the value was not taken) are three different things and
stay apart on disk and in the frame, whose columns are Arrow's: `isna()` is true for null alone.
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
    """Write one row a step, atomically; a column that a row leaves out is null there."""
    if unknown := sorted({key for row in rows for key in row} - COLUMNS.keys()):
        raise ValueError(f"no such history column: {', '.join(unknown)}")
    write_rows(directory / HISTORY, COLUMNS, rows)


def read_history(directory: Path) -> DataFrame:
    """The history, or RecordError if it is missing, cut short or of other columns."""
    import pandas

    frame: DataFrame = read_table(directory).to_pandas(types_mapper=pandas.ArrowDtype)
    return frame


def read_table(directory: Path) -> Table:
    """The history in Arrow, without waiting for pandas; RecordError as above."""
    return read_rows(directory / HISTORY, COLUMNS)
