"""Reads the histories of cells and compares them bit by bit."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from nangrid.records.cell import CellRecord
from nangrid.records.errors import RecordError
from nangrid.records.grid import GridDirectory
from nangrid.records.history import COLUMNS, read_table

History = NDArray[np.float64]
"""One row per step, one column per name in COLUMNS; null is a NaN with special bits, _NULL."""

_NULL = np.array([0x7FF8_0000_0000_0001]).view(np.float64)[0]
"""A NaN that no arithmetic produces: it marks a value that was not measured."""


def read_histories(grid: GridDirectory, records: Iterable[CellRecord]) -> dict[str, History]:
    """By cell_id; a cell without a readable history (a crash) is skipped."""
    histories = {}
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
        histories[record.cell_id] = np.stack(columns, axis=1)
    return histories


def column(history: History, name: str) -> NDArray[np.float64]:
    """One column: a value per step."""
    return history[:, list(COLUMNS).index(name)]


def same_bits(history: History, other: History) -> bool:
    """Whether the steps that both cells ran have bit-identical records, seconds aside."""
    numbers = [number for number, name in enumerate(COLUMNS) if name != "seconds"]
    steps = min(len(history), len(other))
    # as integers, because NaN != NaN
    bits, other_bits = (np.ascontiguousarray(rows[:steps, numbers]).view(np.int64) for rows in (history, other))
    return np.array_equal(bits, other_bits)


def past_an_update(history: History) -> bool:
    """Whether the loss of its second step is finite, so that it shows the effect of the first update."""
    return len(history) > 1 and bool(np.isfinite(column(history, "loss")[1]))
