"""What does a grid's report look like as one HTML page, which opens without a network?

Everything in it is text from records, tables and inline SVG. Jinja escapes all text: tokens come from a user's data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nangrid.records.autopsy import Autopsy
from nangrid.records.cell import CellRecord
from nangrid.records.explain import operands
from nangrid.reporting.figures import MARKERS, colours

_NAMED = {"X": "✖", "D": "◆", "s": "■", "^": "▲", "v": "▼", "P": "✚", "*": "★"}


@dataclass(frozen=True)
class Section:
    """A heading, what to know before reading on, figures and tables."""

    title: str
    lead: Sequence[str] = ()
    figures: Sequence[str] = ()
    """SVG."""
    tables: Sequence[pd.DataFrame] = ()


@dataclass(frozen=True)
class DrawnAutopsy:
    """One autopsy an event: drawn, and told in plain lines."""

    event: str
    cell_id: str
    autopsy: Autopsy
    told: str
    figure: str
    cells: int
    """Cells that met the event."""


@dataclass(frozen=True)
class Page:
    """What a report shows, from top to bottom."""

    title: str
    facts: Mapping[str, str]
    """Shown under the title: cells, machine, versions."""
    verdict: Sequence[str]
    """Sentences; an empty one parts two events."""
    onsets: pd.DataFrame
    """The table of durations: factors, then time, event, status, cell_id."""
    factors: Sequence[str]
    base: Mapping[str, str]
    sections: Sequence[Section]
    autopsies: Sequence[DrawnAutopsy]
    hypotheses: pd.DataFrame
    limits: Sequence[str]
    records: Sequence[CellRecord]
    commands: Mapping[str, str]
    """By cell_id: what runs the cell again."""
    events: Sequence[str] = field(default_factory=list)
    """In the order of their colours."""


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("nangrid.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"table": _table, "svg": Markup, "paragraphs": _paragraphs, "operands": operands}
    marks = {event: _NAMED[MARKERS[number % len(MARKERS)]] for number, event in enumerate(page.events)}
    ledgers = _distinct_ledgers(page.records)
    return environment.get_template("report.html.jinja").render(
        page=page, map=_onset_map(page), colours=colours(page.events), marks=marks, ledgers=ledgers
    )


def _paragraphs(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """A verdict's lines, parted where one is empty: the heading of each part and what follows it."""
    parts: list[list[str]] = [[]]
    for line in lines:
        if line:
            parts[-1].append(line)
        else:
            parts.append([])
    return [(part[0], part[1:]) for part in parts if part]


def _table(frame: pd.DataFrame) -> Markup:
    """A table with numbers to four digits; pandas escapes the text."""
    shown = frame.rename(columns=lambda name: str(name).replace("_", " "))
    html = shown.to_html(index=False, border=0, na_rep="", float_format=lambda v: f"{v:.4g}", classes="numbers")
    return Markup(html)


_OF_ONE_CELL = ("changed", "layers", "preflight", "early_warnings")
"""Of a ledger what is no dtype and no arithmetic."""


@dataclass(frozen=True)
class _Mark:
    """One cell in the onset map."""

    text: str
    event: str | None
    title: str


def _onset_map(page: Page) -> dict[str, Any]:
    """Columns are the levels of the factor with most of them, rows the combinations of the others."""
    cells: list[dict[str, Any]] = [{str(k): v for k, v in row.items()} for row in page.onsets.to_dict("records")]
    if not page.factors:
        return {"columns": ["all cells"], "across": "", "down": [], "rows": [((), [[_mark(cell) for cell in cells]])]}
    across = max(page.factors, key=lambda factor: page.onsets[factor].nunique())
    down = [factor for factor in page.factors if factor != across]
    columns = list(dict.fromkeys(cell[across] for cell in cells))
    grouped: dict[tuple[str, ...], dict[str, list[_Mark]]] = {}
    for cell in cells:
        row = grouped.setdefault(tuple(cell[factor] for factor in down), {column: [] for column in columns})
        row[cell[across]].append(_mark(cell))
    rows = [
        ([(level, level == page.base[f]) for f, level in zip(down, levels, strict=True)], list(row.values()))
        for levels, row in grouped.items()
    ]
    return {"columns": columns, "across": across, "down": down, "rows": rows}


def _mark(cell: dict[str, Any]) -> _Mark:
    seed = f"seed {cell['seed']}, " if "seed" in cell else ""
    name = cell["cell_id"][:8]
    if cell["flagged"]:
        return _Mark("!", "crash", f"{seed}{cell['status']}: {cell['error']} ({name})")
    if pd.isna(cell["event"]):
        return _Mark("·", None, f"{seed}finite to step {cell['time']} ({name})")
    return _Mark(str(cell["time"]), str(cell["event"]), f"{seed}{cell['event']} at step {cell['time']} ({name})")


def _distinct_ledgers(records: Sequence[CellRecord]) -> pd.DataFrame:
    """What was really computed in, a row for each that differs, and how many cells had it."""
    rows = [
        {"dtype asked": record.factors.get("dtype", "")}
        | {key: _plain(value) for key, value in record.ledger.items() if key not in _OF_ONE_CELL}
        for record in records
    ]
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows).fillna("").astype(str)
    counted = frame.value_counts(sort=False).rename("cells").reset_index()
    return counted[["cells", *frame.columns]]


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)
