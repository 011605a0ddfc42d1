"""Do two cells differ in a single bit of what was recorded of their steps?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from nangrid.records.cell import CellRecord
from nangrid.records.errors import RecordError
from nangrid.records.grid import GridDirectory
from nangrid.records.history import COLUMNS, read_table

History = NDArray[np.float64]
"""One row a step, one column of COLUMNS; null is NaN of its own bits."""

LAST = 4
"""Steps whose losses are averaged."""

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
    """Whether all that was recorded is equal to the last bit; how long the steps took is not looked at."""
    numbers = [number for number, name in enumerate(COLUMNS) if name != "seconds"]
    return np.array_equal(history[:, numbers].view(np.int64), other[:, numbers].view(np.int64))


def losses_at_one_time(histories: Mapping[str, History], steps: int) -> dict[str, float]:
    """Each cell's loss after so many steps, the mean of the last LAST of them: NaN if it did not get there.

    Cells of one seed see the same batches, so that losses at the same steps compare; at other steps they do not.
    """
    reached = {cell_id: history for cell_id, history in histories.items() if len(history) >= steps}
    return {
        cell_id: float(column(history, "loss")[max(0, steps - LAST) : steps].mean())
        for cell_id, history in reached.items()
    }
