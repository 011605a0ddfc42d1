"""Formats the summary of a finished cell or grid for the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from nangrid.records.cell import CLOCKS, STATUS_TITLES, CellRecord
from nangrid.reporting.palette import ERROR, FINITE, NONFINITE, UNTRAINED

_TAIL_LINES = 10
_NAMES_SHOWN = 3
_MOST_ROWS = 60
_ONSET_WIDTH = 20
_ID_WIDTH = 8
_UNLIMITED = 10_000


def grid_summary(table: pd.DataFrame, pivot: pd.DataFrame) -> RenderableType:
    """The onset table, the cells per status, and the pivot by level; both tables come from nangrid.analysis.onsets."""
    shown: RenderableType = _OnsetTable(table) if len(table) <= _MOST_ROWS else Text("one line per cell in onsets.csv")
    parts: list[RenderableType] = [shown, Text(_count(table)), Text()]
    return Group(*parts, *([_levels(pivot)] if len(pivot) else []))


def cell_summary(record: CellRecord, history: pd.DataFrame | None, directory: Path) -> str:
    """The lines that end a single run, warnings first; `history` is None for a cell that wrote none."""
    lines = [f"WARNING: {warning}" for warning in record.ledger.get("warnings", [])]
    lines += [f"preflight: {finding}" for finding in record.ledger.get("preflight", [])]
    lines += [f"early warning: {warning}" for warning in record.ledger.get("early_warnings", [])]
    lines += [*_what_happened(record, history), *_what_did_not_train(record)]
    return "\n".join([*lines, f"records: {directory}"])


class _OnsetTable:
    """The onset table: one column per factor where they fit, else all levels of a cell in one column.

    Rich would break a level in the middle of a word to make columns fit. Here lines wrap between words only.
    """

    def __init__(self, table: pd.DataFrame) -> None:
        self.factors = list(table.columns[: table.columns.get_loc("status")])
        self.rows = _rows(table)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = self._table(self.factors, [[_text(row[factor]) for factor in self.factors] for row in self.rows])
        fits = Measurement.get(console, options.update(max_width=_UNLIMITED), wide).maximum <= options.max_width
        if fits:
            yield wide
            return
        levels = [" ".join(f"{factor}={row[factor]}" for factor in self.factors) for row in self.rows]
        yield self._table(["levels"], [[Text(line)] for line in levels])

    def _table(self, headings: Sequence[str], levels: Sequence[Sequence[Text]]) -> Table:
        onsets = [_onset(row) for row in self.rows]
        shown = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for heading in headings:
            shown.add_column(heading, overflow="fold")
        shown.add_column("onset", width=min(_ONSET_WIDTH, max(onset.cell_len for onset in onsets)))
        losses = [_loss(row) for row in self.rows]
        shown.add_column("loss at", width=max(len(text) for text in ("loss at", *losses)), justify="right")
        shown.add_column("cell", width=_ID_WIDTH, style="dim")
        for row, cells, onset, loss in zip(self.rows, levels, onsets, losses, strict=True):
            shown.add_row(*cells, onset, loss, row["cell_id"][:_ID_WIDTH])
        return shown


def _loss(row: dict[str, Any]) -> str:
    return "" if row["loss_step"] is None else f"step {row['loss_step']}"


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
    """Number of cells per status, the most frequent first: `10 non-finite, 6 finite`."""
    return ", ".join(f"{n} {STATUS_TITLES.get(str(s), s)}" for s, n in table["status"].value_counts().items())


def _levels(pivot: pd.DataFrame) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
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
    """Rows of a table as dicts, null as None."""
    plain = frame.astype("object").where(frame.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]


def _text(value: Any) -> Text:
    """A level as Text, because rich would read `[q_proj]` in a str as markup."""
    return Text("" if value is None else str(value))


def _what_happened(record: CellRecord, history: pd.DataFrame | None) -> list[str]:
    course = f"loss {_number(record.trains.loss_first)} -> {_number(record.trains.loss_last)}{_norms(history)}"
    lines = []
    if record.onset:
        tripped = [(record.clocks[clock], clock) for clock in CLOCKS if record.clocks[clock] is not None]
        first, *later = sorted(tripped, key=lambda trip: (trip[0], CLOCKS.index(trip[1])))
        rest = "".join(f", {_clock(clock)} at step {step}" for step, clock in later)
        lines.append(f"{_clock(first[1])} went non-finite at step {first[0]}{rest}: {course}")
    elif record.status == "finite":
        start = f" from step {record.first_step}" if record.first_step else ""
        lines.append(f"finite for {record.steps_done} steps{start} (censored): {course}")
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
            "so clipping scales every update to zero and nothing is learned"
        )
    if names := record.trains.without_gradient:
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        shown = ", ".join(names[:_NAMES_SHOWN])
        lines.append(f"NO GRADIENT ever reached {len(names)} trainable{'s' * (len(names) > 1)}: {shown}{more}")
    return lines


def _norms(history: pd.DataFrame | None) -> str:
    norms = [] if history is None else [norm for norm in history["grad_norm"].dropna() if not math.isnan(norm)]
    return f", gradient norm up to {_number(max(norms))}" if norms else ""


def _number(value: float | None) -> str:
    return "?" if value is None else re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.3g}")


def _clock(clock: str) -> str:
    return clock.replace("_", " ")
