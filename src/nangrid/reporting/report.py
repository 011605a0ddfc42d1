"""Lays out the evidence of a grid as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from nangrid.analysis.effects import ANY
from nangrid.analysis.evidence import Evidence, rerun_command
from nangrid.analysis.headroom import forecast, in_fp16, room
from nangrid.analysis.histories import column
from nangrid.analysis.limits import MACHINE, PACKAGES
from nangrid.analysis.survival import common_horizon
from nangrid.records.autopsy import AUTOPSY
from nangrid.records.cell import LOG, RESULT, CellRecord
from nangrid.records.explain import explain
from nangrid.records.explain.finding import finding_of
from nangrid.records.headroom import LIMITS
from nangrid.records.safety.text import printable
from nangrid.reporting.figures import (
    Trace,
    autopsy_figure,
    effects_figure,
    headroom_figure,
    survival_figure,
    traces_figure,
)
from nangrid.reporting.page import DrawnAutopsy, Page, Section, render
from nangrid.reporting.terminal import counted_statuses

_MOST_TRACES = 100
_SHOWN = 12


def report_html(evidence: Evidence) -> str:
    """The whole report as one HTML page, which a terminal may show too."""
    return printable(render(page_of(evidence)))


def page_of(evidence: Evidence) -> Page:
    """The page of a grid. A section without data (no factor varies, nothing failed) is omitted."""
    events = events_of(evidence)
    factors = evidence.factors
    sections = [_effects(evidence), _survival(evidence)] if factors else []
    if evidence.histories:
        sections.append(_traces(evidence, events))
    if evidence.headroom:
        sections.append(_headroom(evidence, *evidence.headroom))
    return Page(
        title=f"nangrid: {evidence.grid_id}",
        facts=_facts(evidence),
        sentences=evidence.sentences,
        cards=evidence.cards,
        reference=evidence.reference,
        diagnosed=evidence.diagnosed,
        verdict=evidence.verdict,
        every_cure=evidence.every_cure,
        onsets=evidence.times,
        factors=factors,
        base=evidence.base,
        sections=sections,
        autopsies=_drawn(evidence, events),
        hypotheses=evidence.hypotheses,
        limits=evidence.limits,
        records=evidence.records,
        commands={record.cell_id: rerun_command(record) for record in evidence.records},
        files={record.cell_id: _files(evidence.path / "cells" / record.cell_id) for record in evidence.records},
        events=events,
    )


def _files(cell: Path) -> list[str]:
    return [name for name in (RESULT, AUTOPSY, LOG) if (cell / name).exists()]


def events_of(evidence: Evidence) -> list[str]:
    """The events of the grid, the most frequent first."""
    return [str(event) for event in evidence.times["event"].dropna().value_counts().index]


def traces_of(evidence: Evidence) -> list[Trace]:
    """Loss and gradient norm per cell with a history, at most `_MOST_TRACES` of them, failing cells first."""
    times = evidence.times.sort_values("event", na_position="last", kind="stable")
    traces: list[Trace] = []
    levels = times[evidence.factors].astype(str).agg(" ".join, axis="columns") if evidence.factors else times["cell_id"]
    for cell_id, event, label in zip(times["cell_id"], times["event"], levels, strict=True):
        history = evidence.histories.get(cell_id)
        if history is not None and len(traces) < _MOST_TRACES:
            name = None if pd.isna(event) else str(event)
            loss, norm = (column(history, name).tolist() for name in ("loss", "grad_norm"))
            traces.append(Trace(f"{label} ({cell_id[:8]})" if evidence.factors else cell_id[:8], name, loss, norm))
    return traces


def _facts(evidence: Evidence) -> dict[str, str]:
    models = sorted({str(record.factors.get("model", "?")) for record in evidence.records})
    machine = evidence.records[0].environment
    starts = ", ".join(map(str, sorted({record.first_step for record in evidence.records} - {0})))
    resumed = {"resumed from": f"step {starts} of another run; steps below count from there"} if starts else {}
    return {
        "cells": f"{len(evidence.records)} ({counted_statuses(evidence.onsets)})",
        "model": ", ".join(models),
        **resumed,
        "machine": " ".join(str(machine[key]) for key in MACHINE if key in machine),
        "versions": ", ".join(f"{name} {machine[name]}" for name in PACKAGES if name in machine),
    }


def _effects(evidence: Evidence) -> Section:
    horizon = common_horizon(evidence.times)
    any_event = evidence.tests[evidence.tests["event"] == ANY].drop(columns="event")
    by_event = evidence.tests[(evidence.tests["event"] != ANY) & (evidence.tests["strata"] > 0)]
    lead = [
        "What one factor does by itself. Only matched runs are compared: equal in every other factor and in the seed. "
        f"The first table gives the mean number of steps survived, up to step {horizon}, minus that of the reference "
        "level. With five seeds or more it has an exact 95 % interval over seeds. The second table asks whether the "
        "runs of all levels of a factor stay finite equally long: a small p says they do not. It comes from a log-rank "
        "test, by permutation within matched sets; Holm's correction allows for several factors. Further tables "
        "count one kind of event at a time."
    ]
    tables = [evidence.contrasts, any_event, *([by_event] if len(by_event) else [])]
    crossed = evidence.interactions[evidence.interactions["difference"].abs() > 0].head(10)
    if len(crossed):
        lead.append(
            "The last table lists interactions: by how many steps the effect of a level changes when another factor "
            "leaves its reference level."
        )
        tables.append(crossed)
    return Section("Effects", lead, [effects_figure(evidence.contrasts, horizon)], tables, _statistics(evidence))


def _survival(evidence: Evidence) -> Section:
    lead = [
        "Share of runs still finite after each step (Kaplan-Meier), per level and pooled over all other factors; ticks "
        "mark censored runs. The first table gives the share of failing seeds per combination, with Clopper and "
        "Pearson's 95 % interval (one-sided where none or all of them fail). The second gives the share of runs that "
        "end in each event (Aalen-Johansen)."
    ]
    shares = [
        frame.pivot(index=["level", "cells"], columns="event", values="share").reset_index().assign(factor=factor)
        for factor, frame in evidence.incidence.items()
        if len(frame)
    ]
    tables = [evidence.rates]
    if shares:
        joined = pd.concat(shares)
        tables.append(joined[["factor", *joined.columns.drop("factor")]].rename_axis(columns=None))
    figures = [survival_figure(evidence.curves, common_horizon(evidence.times))]
    return Section("Survival", lead, figures, tables, _statistics(evidence))


def _statistics(evidence: Evidence) -> str:
    """What the folded statistics are good for: with one seed they add nothing to the verdict."""
    seeds = evidence.times["seed"].nunique() if "seed" in evidence.times else 1
    only = "With one seed, the verdict rests on the single runs and their replays, not on these numbers"
    return "How long the runs of each level stay finite, with tests and intervals" if seeds > 1 else only


def _traces(evidence: Evidence, events: Sequence[str]) -> Section:
    traces = traces_of(evidence)
    shown = "" if len(traces) == len(evidence.histories) else f" ({len(traces)} of {len(evidence.histories)} cells)"
    lead = [
        f"One line per run{shown}. A failing run ends with a marker at its last finite value; one whose first value is "
        "already non-finite has none. Under each panel, the finite run with the highest value is named."
    ]
    return Section("Loss and gradient norm", lead, [traces_figure(traces, events)])


def _headroom(evidence: Evidence, cell_id: str, frame: pd.DataFrame) -> Section:
    table, warned = room(frame), _early_warnings(evidence.records)
    levels = evidence.times.set_index("cell_id").loc[cell_id, evidence.factors].to_dict()
    is_reference = evidence.reference and levels == evidence.base
    run = f"the reference, run {cell_id[:8]}," if is_reference else f"run {cell_id[:8]}"
    lead = [
        f"How close {run} is to each format's limit: its largest activations and "
        "gradients, sampled on its first step and every few after. Bits left: log2(largest finite number of the "
        "format / largest value). Below 0 that format overflows. The largest values come first.",
        in_fp16(frame),
    ]
    growing = forecast(frame)
    if len(growing):
        lead.append(
            "The second table lists what grows towards the fp16 limit, by a straight line through log2 of its size."
        )
    if len(warned):
        lead.append("The last table lists early warnings: gradients that grew towards the limit of their format.")
    tables = [table.head(_SHOWN), *(rest.head(_SHOWN) for rest in (growing, warned) if len(rest))]
    return Section("Headroom", lead, [headroom_figure(table, LIMITS)], tables)


def _early_warnings(records: Sequence[CellRecord]) -> pd.DataFrame:
    """Early warnings per cell, and how that cell ended."""
    rows = [
        (record.cell_id[:8], warning, "finite" if record.onset is None else f"onset at step {record.onset.step}")
        for record in records
        for warning in record.ledger.get("early_warnings", [])
    ]
    return pd.DataFrame(rows, columns=["cell", "early_warning", "ended"])


def _drawn(evidence: Evidence, events: Sequence[str]) -> list[DrawnAutopsy]:
    drawn = []
    layers = max(int(record.ledger.get("layers", 0)) for record in evidence.records)
    for event in events:
        cells = [i for i in evidence.times.loc[evidence.times["event"] == event, "cell_id"] if i in evidence.autopsies]
        if not cells:
            continue
        autopsy = evidence.autopsies[cells[0]]
        finding = finding_of(autopsy, Path("cells") / cells[0])
        figure = autopsy_figure(autopsy, layers)
        lines = explain(replace(autopsy, suggestions=[]))  # the cards say which changes helped
        drawn.append(DrawnAutopsy(event, cells[0], autopsy, finding, lines, figure, len(cells)))
    return drawn
