"""Renders a grid's report as one self-contained HTML page that works offline.

It holds text from records, tables and inline SVG. Jinja escapes all text, because tokens come from a user's data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nangrid.analysis.verdict.meanings import meaning
from nangrid.records.autopsy import Autopsy
from nangrid.records.cell import CellRecord
from nangrid.records.explain import operands
from nangrid.records.output.answer import EventCard, Finding
from nangrid.reporting.figures import MARKERS, colours

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:"
"""What a browser may load into a page: its own styles and images, no script, nothing from elsewhere."""
_NAMED = {"X": "✖", "D": "◆", "s": "■", "^": "▲", "v": "▼", "P": "✚", "*": "★"}


@dataclass(frozen=True)
class Section:
    """A heading, an introduction, figures and tables."""

    title: str
    lead: Sequence[str] = ()
    figures: Sequence[str] = ()
    """SVG."""
    tables: Sequence[pd.DataFrame] = ()
    folded: str = ""
    """The line under which the section is folded; empty if it is open."""


@dataclass(frozen=True)
class DrawnAutopsy:
    """The autopsy of one event, drawn and in plain lines."""

    event: str
    cell_id: str
    autopsy: Autopsy
    finding: Finding
    lines: str
    """From nangrid.records.explain."""
    figure: str
    cells: int
    """Number of cells with the event."""


@dataclass(frozen=True)
class Page:
    """Contents of a report, from top to bottom."""

    title: str
    facts: Mapping[str, str]
    """Shown under the title: cells, machine, versions."""
    sentences: Sequence[str]
    """What the grid shows, in plain English: first how many runs failed, then one sentence per event."""
    cards: Sequence[EventCard]
    reference: str
    """The levels with which the others are compared; empty if nothing trains."""
    diagnosed: bool
    """Whether the verdict begins with the result of a search."""
    verdict: Sequence[str]
    """Sentences; an empty one separates two events."""
    every_cure: Sequence[str]
    """All cures, where the verdict leaves some out."""
    onsets: pd.DataFrame
    """Table of durations: factors, then time, event, status, cell_id."""
    factors: Sequence[str]
    base: Mapping[str, str]
    sections: Sequence[Section]
    autopsies: Sequence[DrawnAutopsy]
    hypotheses: pd.DataFrame
    limits: Sequence[str]
    records: Sequence[CellRecord]
    commands: Mapping[str, str]
    """Command that reruns each cell, by cell_id."""
    files: Mapping[str, Sequence[str]]
    """Files of each cell to which its row links, by cell_id."""
    events: Sequence[str] = field(default_factory=list)
    """Events in the order of their colours."""


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("nangrid.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"table": _table, "svg": Markup, "paragraphs": _paragraphs, "operands": operands}
    marks = {event: _NAMED[MARKERS[number % len(MARKERS)]] for number, event in enumerate(page.events)}
    ledgers = _distinct_ledgers(page.records)
    levels = _levels(page.records, page.factors)
    return environment.get_template("report.html.jinja").render(
        page=page,
        map=_onset_map(page),
        colours=colours(page.events),
        marks=marks,
        levels=levels,
        ledgers=ledgers,
        policy=POLICY,
    )


def _paragraphs(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The paragraphs of a verdict: a heading and its lines each. An empty line separates two."""
    parts: list[list[str]] = [[]]
    for line in lines:
        if line:
            parts[-1].append(line)
        else:
            parts.append([])
    return [(part[0], part[1:]) for part in parts if part]


def with_headings(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with its columns named for a reader."""
    return frame.rename(columns=lambda name: _HEADINGS.get(str(name), str(name).replace("_", " ")))


def _table(frame: pd.DataFrame) -> Markup:
    """A table with numbers to four digits; pandas escapes the text."""
    shown = with_headings(frame)
    html = shown.to_html(index=False, border=0, na_rep="", float_format=lambda v: f"{v:.4g}", classes="numbers")
    return Markup(html)


_HEADINGS = {
    "base": "reference level",
    "pairs": "matched pairs",
    "telling": "pairs that can tell",
    "met": "failing runs",
    "met_base": "failing runs (reference level)",
    "difference": "difference in steps",
    "lower": "95\u00a0%\u00a0from",
    "upper": "95\u00a0%\u00a0to",
    "same_bits": "pairs with equal bits",
    "compared": "pairs or sets compared",
    "updated": "pairs past first update",
    "fours": "matched sets of four runs",
    "strata": "informative sets",
    "chi2": "chi squared",
    "exact": "all permutations tried",
    "least_p": "smallest possible p",
    "p_holm": "p (Holm)",
    "flagged": "crashed or timed out",
    "absmax": "largest value",
    "order": "place in the forward pass",
    "text": "token",
    "fp16": "bits left in fp16",
    "bf16": "bits left in bf16",
    "fp32": "bits left in fp32",
    "doubles_in": "doubles every (steps)",
    "reaches_at": "reaches 65504 at step",
    "r2": "r squared",
    "looks": "samples",
}
"""Column of a table -> its heading on the page."""
_OF_ONE_CELL = ("changed", "layers", "preflight", "early_warnings")
"""Ledger entries that are neither dtypes nor arithmetic."""


@dataclass(frozen=True)
class _Mark:
    """Mark of one cell in the onset map."""

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
        return _Mark("✓", None, f"{seed}finite for {cell['time']} steps ({name})")
    return _Mark(f"step {cell['time']}", str(cell["event"]), f"{seed}{cell['event']} at step {cell['time']} ({name})")


def _levels(records: Sequence[CellRecord], factors: Sequence[str]) -> list[tuple[str, str]]:
    """What each level of a varying group stands for, in words; where none are known, by the fields that differ."""
    described = []
    for factor in factors:
        rows = {str(r.factors[factor]): r for r in records if factor in r.factors}
        fields = [key for key in next(iter(rows.values())).factors if key.startswith(f"{factor}.")] if rows else []
        differing = [key for key in fields if len({str(row.factors.get(key)) for row in rows.values()}) > 1]
        if set(differing) & set(factors):
            continue
        for level, row in rows.items():
            as_fields = ", ".join(f"{key}={row.factors.get(key)}" for key in differing)
            described.append((f"{factor}={level}", meaning(factor, level, row) or as_fields))
    return [(level, text) for level, text in described if text]


def _distinct_ledgers(records: Sequence[CellRecord]) -> pd.DataFrame:
    """The distinct ledgers, one row each, with the number of cells that had it."""
    rows = [
        {"dtype requested": record.factors.get("dtype", "")}
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
