"""Tabulates which cells of a grid went non-finite, when, and under which levels."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from nangrid.records.atomic import write_bytes
from nangrid.records.autopsy import Autopsy
from nangrid.records.cell import CellRecord
from nangrid.records.defaults import NOT_LISTED
from nangrid.records.grid import GridDirectory
from nangrid.records.safety.text import cell_text, printable

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
    """One row per cell: the factors that vary, named by their keys, then the columns of OUTCOMES.

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
    """One row per level: factor, level, cells, nonfinite, median_onset (of the non-finite cells)."""
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
    mixed = [column for column in factor_columns(table) if table[column].dtype == object]  # 1 and "1" in one column
    table = table.assign(**{column: table[column].map(level_name) for column in mixed})
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_bytes(grid.path / "onsets.parquet", buffer.getvalue())
    texts = table.map(cell_text, na_action="ignore").rename(columns=cell_text)
    write_bytes(grid.path / "onsets.csv", printable(texts.to_csv(index=False)).encode())


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


_RESERVED = {*OUTCOMES, "time", "event", "flagged", "seeds", "met", "rate", "lower", "upper", "events"}
"""Columns of the tables made from the onset table: a factor of that name becomes `factor.NAME`."""

Columns = dict[str, list[Any]]
"""Factor or field -> its value in each cell."""


def varying_factors(factors: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per cell: the factors that vary, without those that are determined by others. Lists become JSON text.

    A field that its group's level determines is no factor. Nor is a group that its independent fields determine.
    """
    keys = dict.fromkeys(key for cell in factors for key in cell)
    columns: Columns = {key: [_scalar(cell.get(key, NOT_LISTED.get(key))) for cell in factors] for key in keys}
    fields = _independent_fields(columns)
    _strip_stars(columns, fields)
    varying = {
        f"factor.{key}" if key in _RESERVED else key: pd.Series(_told_apart(values), dtype="object").convert_dtypes()
        for key, values in _without_determined(columns, fields).items()
        if len({_identity(value) for value in values}) > 1
    }
    return pd.DataFrame(varying, index=range(len(factors)))


def _identity(value: Any) -> tuple[bool, Any]:
    """Python holds 1 and True to be equal; as levels they are not. All NaN are one level."""
    return isinstance(value, bool), "nan" if isinstance(value, float) and math.isnan(value) else value


def _told_apart(values: list[Any]) -> list[Any]:
    """Levels of one kind as they are; levels of several kinds as text, with quotes where only they tell two apart."""
    kinds = {float if type(value) is int else type(value) for value in values if value is not None}
    if len(kinds) < 2 and len(set(values)) == len(set(map(str, values))):  # 1 and 1.0 are two spellings of one number
        return values
    others = {str(value) for value in values if not isinstance(value, str)}
    return [repr(v) if isinstance(v, str) and v in others else v if v is None else str(v) for v in values]


def _independent_fields(columns: Columns) -> dict[str, list[str]]:
    """Group -> its fields that its level does not determine, in the order of the columns."""
    fields: dict[str, list[str]] = {}
    for key, values in columns.items():
        group, is_field, _ = key.partition(".")
        if is_field and not _is_determined_by(values, columns.get(group, [])):
            fields.setdefault(group, []).append(key)
    return fields


def _strip_stars(columns: Columns, fields: dict[str, list[str]]) -> None:
    """Replace `bf16*` by `bf16` where the overridden field has a column of its own, which says what differs."""
    for group in fields.keys() & columns.keys():
        columns[group] = [level.rstrip("*") if isinstance(level, str) else level for level in columns[group]]


def _without_determined(columns: Columns, fields: dict[str, list[str]]) -> Columns:
    """The columns without determined fields, and without groups whose independent fields determine them."""

    def determined(key: str) -> bool:
        group, is_field, _ = key.partition(".")
        if is_field:
            return key not in fields.get(group, [])
        return key in fields and _fields_determine(columns[key], [columns[field] for field in fields[key]])

    return {key: values for key, values in columns.items() if not determined(key)}


def _fields_determine(levels: list[Any], fields: list[list[Any]]) -> bool:
    """Whether cells with equal fields always have the same level of the group."""
    return len(set(zip(*fields, strict=True))) == len(set(zip(levels, *fields, strict=True)))


def _is_determined_by(values: list[Any], levels: list[Any]) -> bool:
    """Whether cells of one level always have the same value. `bf16*` counts as bf16: its field was overridden."""
    pairs = {(str(level).rstrip("*"), value) for level, value in zip(levels, values, strict=bool(levels))}
    return bool(levels) and len(pairs) == len({level for level, _ in pairs})


def _scalar(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def level_name(level: Any) -> str:
    """The level as a user types it; `null` if the cell has no such key or none is set."""
    return "null" if pd.isna(level) else str(level)
