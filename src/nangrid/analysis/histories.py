"""Do two cells differ in a single bit of what was recorded of their steps?"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nangrid.records.cell import CellRecord
from nangrid.records.errors import RecordError
from nangrid.records.grid import GridDirectory
from nangrid.records.history import COLUMNS, read_table

History = NDArray[np.float64]
"""One row a step, one column of COLUMNS; null is NaN of its own bits."""

_NULL = np.array([0x7FF8_0000_0000_0001]).view(np.float64)[0]
"""A NaN that no arithmetic makes: a value that was not taken."""


def read_histories(grid: GridDirectory, records: Iterable[CellRecord]) -> dict[str, History]:
    """By cell_id; a cell without a readable history (a crash) is left out."""
    found = {}
    for record in records:
        try:
            table = read_table(grid.cell(record.cell_id))
        except RecordError:
            continue
        columns = []
        for name in COLUMNS:
            column = table.column(name)
            values = np.array(column.to_numpy(), float)
            values[np.isnan(values)] = np.nan
            if column.null_count:
                values[np.asarray(column.is_null())] = _NULL
            columns.append(values)
        found[record.cell_id] = np.stack(columns, axis=1)
    return found


def column(history: History, name: str) -> NDArray[np.float64]:
    """One column, a value a step."""
    return history[:, list(COLUMNS).index(name)]


def same_bits(history: History, other: History) -> bool:
    """Whether all that was recorded of the steps that both have is equal to the last bit.

    How long the steps took is not looked at.
    """
    numbers = [number for number, name in enumerate(COLUMNS) if name != "seconds"]
    steps = min(len(history), len(other))
    own, its = (np.ascontiguousarray(rows[:steps, numbers]).view(np.int64) for rows in (history, other))
    return np.array_equal(own, its)


def past_an_update(history: History) -> bool:
    """Whether its second step was computed with parameters that are numbers, so that it shows what the first did."""
    return len(history) > 1 and bool(np.isfinite(column(history, "loss")[1]))
