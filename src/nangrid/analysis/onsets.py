"""Which cells of a grid went non-finite, when, and under which levels?"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nangrid.records.atomic import write_bytes
from nangrid.records.autopsy import Autopsy
from nangrid.records.cell import CellRecord
from nangrid.records.grid import GridDirectory

OUTCOMES = {
    "status": "string",
    "first_step": "Int64",
    "onset_step": "Int64",
    "onset_clock": "string",
    "loss_step": "Int64",
    "censored": "bool",
    "steps_survived": "Int64",
    "trains": "bool",
    "frozen_from": "Int64",
    "mechanism": "string",
    "origin_phase": "string",
    "origin_module": "string",
    "origin_op": "string",
    "error": "string",
    "cell_id": "string",
}
"""Columns of the onset table after the factors -> dtype. mechanism and origin_* come from autopsies."""


def onset_table(records: Sequence[CellRecord], autopsies: Mapping[str, Autopsy] | None = None) -> pd.DataFrame:
    """One row a cell: the factors that vary, named by their keys, then the columns of OUTCOMES.

    A field that follows from its group's level (`dtype.storage` from `dtype`) is no factor of its own. Rows
    are ordered by factor, levels in the order in which `records` first shows them. `autopsies` are by cell_id.
    """
    factors = varying_factors([record.factors for record in records])
    known = autopsies or {}
    rows = [_outcome(record, known.get(record.cell_id)) for record in records]
    outcomes = pd.DataFrame(rows, columns=list(OUTCOMES)).astype(OUTCOMES)
    table = pd.concat([factors, outcomes], axis="columns")
    if factors.columns.empty:
        return table
    order = factors.apply(lambda levels: pd.factorize(levels, use_na_sentinel=False)[0])
    return table.loc[order.sort_values(factor_columns(factors), kind="stable").index].reset_index(drop=True)


def factor_columns(table: pd.DataFrame) -> list[str]:
    """The columns of an onset table that are factors."""
    return [column for column in table.columns if column not in OUTCOMES]


def onset_pivot(table: pd.DataFrame) -> pd.DataFrame:
    """One row a level: factor, level, cells, nonfinite, median_onset (of the non-finite cells)."""
    rows = []
    for factor in factor_columns(table):
        for level, cells in table.groupby(factor, sort=False, dropna=False):
            failing = cells[cells["status"] == "nonfinite"]
            median = failing["onset_step"].median()
            rows.append((factor, level_name(level), len(cells), len(failing), median))
    pivot = pd.DataFrame(rows, columns=["factor", "level", "cells", "nonfinite", "median_onset"])
    return pivot.astype({"factor": "string", "level": "string", "median_onset": "Float64"})


def write_onsets(grid: GridDirectory, table: pd.DataFrame) -> None:
    """Write `onsets.parquet` and `onsets.csv` into the grid's directory, each atomically."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_bytes(grid.path / "onsets.parquet", buffer.getvalue())
    write_bytes(grid.path / "onsets.csv", table.to_csv(index=False).encode())


def _outcome(record: CellRecord, autopsy: Autopsy | None) -> dict[str, Any]:
    return {
        "status": record.status,
        "first_step": record.first_step,
        "onset_step": record.onset and record.onset.step,
        "onset_clock": record.onset and record.onset.clock,
        "loss_step": record.clocks["loss"],
        "censored": record.censored,
        "steps_survived": record.steps_survived,
        "trains": record.trained,
        "frozen_from": record.trains.frozen_from,
        "mechanism": autopsy and autopsy.mechanism,
        "origin_phase": autopsy and autopsy.phase,
        "origin_module": autopsy and autopsy.module,
        "origin_op": autopsy and autopsy.op,
        "error": record.error and f"{record.error.type}: {record.error.message}",
        "cell_id": record.cell_id,
    }


def varying_factors(factors: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a cell: only the columns that vary and do not follow from their group's level; lists as JSON text.

    A group that follows from those of its fields that do not is no factor beside them.
    """
    keys = dict.fromkeys(key for cell in factors for key in cell)
    columns = {key: [_scalar(cell.get(key)) for cell in factors] for key in keys}
    fields = {key.split(".")[0] for key, values in columns.items() if "." in key and not _follows_group(key, columns)}
    for group in fields & columns.keys():
        # the field is a factor of its own then, and the group's level is told without it: bf16, not bf16*
        columns[group] = [level.rstrip("*") if isinstance(level, str) else level for level in columns[group]]
    told = {g for g in fields & columns.keys() if _follows_fields(g, columns)}
    varying = {
        key: pd.Series(values, dtype="object").convert_dtypes()
        for key, values in columns.items()
        if len(set(values)) > 1 and not _follows_group(key, columns) and key not in told
    }
    return pd.DataFrame(varying, index=range(len(factors)))


def _follows_fields(group: str, columns: dict[str, list[Any]]) -> bool:
    """Whether the fields that are factors of their own leave no two levels of the group apart."""
    own = [k for k in columns if k.startswith(f"{group}.") and not _follows_group(k, columns)]
    seen = set(zip(*(columns[key] for key in own), strict=True))
    return len(seen) == len(set(zip(columns[group], *(columns[key] for key in own), strict=True)))


def _follows_group(key: str, columns: dict[str, list[Any]]) -> bool:
    return _follows(columns[key], columns.get(key.split(".")[0], []), is_field="." in key)


def _follows(values: list[Any], levels: list[Any], *, is_field: bool) -> bool:
    """Whether every level has one value of the field. `bf16*` is bf16 with a field overridden: one level."""
    if not is_field or not levels:
        return False
    pairs = {(str(level).rstrip("*"), value) for level, value in zip(levels, values, strict=True)}
    return len(pairs) == len({level for level, _ in pairs})


def _scalar(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def level_name(level: Any) -> str:
    """As it is typed; `null` where a cell has no such key, or none set."""
    return "null" if pd.isna(level) else str(level)
