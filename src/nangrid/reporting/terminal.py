"""What does a person read in the terminal when a cell or a grid is done?"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nangrid.records.cell import CLOCKS, STATUS_TITLES, CellRecord

# Okabe and Ito's palette: told apart by colour-blind readers; the words alone say the same.
FINITE, NONFINITE, UNTRAINED, ERROR = "#0072B2", "#D55E00", "#E69F00", "bold #CC79A7"
_TAIL_LINES = 10
_NAMES_SHOWN = 3
_MOST_ROWS = 60


def grid_summary(table: pd.DataFrame, pivot: pd.DataFrame) -> RenderableType:
    """The onset table, a line that counts, and the pivot by level (nangrid.analysis.onsets makes both)."""
    shown = _onsets(table) if len(table) <= _MOST_ROWS else Text("one line a cell: onsets.csv")
    parts: list[RenderableType] = [shown, Text(_count(table)), Text()]
    return Group(*parts, *([_levels(pivot)] if len(pivot) else []))


def cell_summary(record: CellRecord, history: pd.DataFrame | None, directory: Path) -> str:
    """The plain lines that end a single run, warnings first; `history` is None where none was written."""
    lines = [f"WARNING: {warning}" for warning in record.ledger.get("warnings", [])]
    lines += [f"preflight: {finding}" for finding in record.ledger.get("preflight", [])]
    lines += [f"early warning: {warning}" for warning in record.ledger.get("early_warnings", [])]
    lines += [*_what_happened(record, history), *_what_did_not_train(record)]
    return "\n".join([*lines, f"records: {directory}"])


def _onsets(table: pd.DataFrame) -> Table:
    factors = list(table.columns[: table.columns.get_loc("status")])
    shown = Table(box=box.SIMPLE_HEAD, padding=0)
    for factor in factors:
        shown.add_column(factor, overflow="fold")
    # of fixed width: rich then takes what many factors need from the factors, and cuts no column off
    shown.add_column("onset", width=20)
    shown.add_column("loss at", width=7, justify="right")
    shown.add_column("cell", width=8, style="dim")
    for row in _rows(table):
        levels = [_text(row[factor]) for factor in factors]
        shown.add_row(*levels, _onset(row), _text(row["loss_step"]), row["cell_id"][:8])
    return shown


def _onset(row: dict[str, Any]) -> Text:
    if row["onset_step"] is not None:
        return Text(f"step {row['onset_step']} · {_clock(row['onset_clock'])}", NONFINITE)
    if row["status"] == "error":
        return Text(f"error: {row['error']}", ERROR)
    if row["status"] == "timeout":
        return Text(f"timeout after {row['steps_survived']} steps", ERROR)
    finite = f"finite ({row['steps_survived']} steps)"
    if row["frozen_from"] is not None:
        return Text(f"{finite}, frozen from {row['frozen_from']}", UNTRAINED)
    return Text(finite, FINITE) if row["trains"] else Text(f"{finite}, not all trained", UNTRAINED)


def _count(table: pd.DataFrame) -> str:
    return f"{len(table)} cells: {counted_statuses(table)}"


def counted_statuses(table: pd.DataFrame) -> str:
    """Of an onset table, the commonest first: `10 non-finite, 6 finite`."""
    return ", ".join(f"{n} {STATUS_TITLES.get(str(s), s)}" for s, n in table["status"].value_counts().items())


def _levels(pivot: pd.DataFrame) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, padding=0)
    for heading in ("factor", "level"):
        shown.add_column(heading, overflow="fold")
    for heading in ("cells", "non-finite", "median onset"):
        shown.add_column(heading, justify="right")
    previous = None
    for row in _rows(pivot):
        nonfinite = Text(str(row["nonfinite"]), NONFINITE if row["nonfinite"] else FINITE)
        factor = None if row["factor"] == previous else row["factor"]
        median = None if row["median_onset"] is None else f"{row['median_onset']:g}"
        shown.add_row(_text(factor), _text(row["level"]), _text(row["cells"]), nonfinite, _text(median))
        previous = row["factor"]
    return shown


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dicts, null as None."""
    plain = frame.astype("object").where(frame.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]


def _text(value: Any) -> Text:
    """Text, not str: rich would read `[q_proj]` in a str as markup."""
    return Text("" if value is None else str(value))


def _what_happened(record: CellRecord, history: pd.DataFrame | None) -> list[str]:
    course = f"loss {_number(record.trains.loss_first)} -> {_number(record.trains.loss_last)}{_norms(history)}"
    lines = []
    if record.onset:
        rung = [(record.clocks[clock], clock) for clock in CLOCKS if record.clocks[clock] is not None]
        first, *later = sorted(rung, key=lambda ring: (ring[0], CLOCKS.index(ring[1])))
        rest = "".join(f", {_clock(clock)} at step {step}" for step, clock in later)
        lines.append(f"{_clock(first[1])} went non-finite at step {first[0]}{rest}: {course}")
    elif record.status == "finite":
        went_on = f" from step {record.first_step} on" if record.first_step else ""
        lines.append(f"finite through {record.steps_done} steps{went_on} (censored): {course}")
    if record.status in ("error", "timeout"):
        lines.append(f"{record.status} after {record.steps_done} steps")
    if record.error:
        lines[-1] += f": {record.error.type}: {record.error.message}"
        lines += [f"  {line}" for line in record.error.log_tail.splitlines()[-_TAIL_LINES:]]
    return lines


def _what_did_not_train(record: CellRecord) -> list[str]:
    lines = []
    if record.trains.frozen_from is not None:
        lines.append(
            f"FROZEN from step {record.trains.frozen_from}: the gradient norm is inf, "
            "so clipping makes every update zero and nothing is learned"
        )
    if names := record.trains.without_gradient:
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        shown = ", ".join(names[:_NAMES_SHOWN])
        lines.append(f"NO GRADIENT ever reached {len(names)} trainables: {shown}{more}")
    return lines


def _norms(history: pd.DataFrame | None) -> str:
    norms = [] if history is None else [norm for norm in history["grad_norm"].dropna() if not math.isnan(norm)]
    return f", gradient norm up to {_number(max(norms))}" if norms else ""


def _number(value: float | None) -> str:
    return "?" if value is None else re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.3g}")


def _clock(clock: str) -> str:
    return clock.replace("_", " ")
