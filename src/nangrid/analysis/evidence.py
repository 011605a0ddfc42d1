"""Gathers everything that a finished grid shows, once, for the terminal, the page and the notebooks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nangrid.analysis.causes import Combination, Grid, format_levels
from nangrid.analysis.effects import contrasts, factor_tests, interactions
from nangrid.analysis.histories import History, column, read_histories
from nangrid.analysis.hypotheses import RULES, Decided, decide, read_hypotheses
from nangrid.analysis.limits import limits
from nangrid.analysis.onsets import onset_table, varying_factors
from nangrid.analysis.rates import rates
from nangrid.analysis.survival import durations, factors_of, incidence, survival_curves
from nangrid.analysis.verdict import event_cards, every_cure, sentences, verdict
from nangrid.records.autopsy import Autopsy
from nangrid.records.cell import CellRecord
from nangrid.records.diagnosis import DiagnosisRecord, read_diagnoses
from nangrid.records.errors import InputError, RecordError
from nangrid.records.grid import GridDirectory, GridRecords
from nangrid.records.headroom import read_headroom
from nangrid.records.output.answer import EventCard
from nangrid.records.safety.command import typed
from nangrid.records.safety.names import is_override


@dataclass(frozen=True)
class Evidence:
    """What a grid shows. Each table comes from one function of nangrid.analysis."""

    grid_id: str
    path: Path
    records: Sequence[CellRecord]
    autopsies: Mapping[str, Autopsy]
    """By cell_id."""
    histories: Mapping[str, History]
    """By cell_id."""
    onsets: pd.DataFrame
    times: pd.DataFrame
    base: Mapping[str, str]
    """The reference's levels, or the first levels where nothing trains."""
    reference: str
    """The levels of the reference; empty if nothing trains."""
    sentences: Sequence[str]
    """What the grid shows, in plain English: first how many runs failed, then one sentence per event."""
    cards: Sequence[EventCard]
    diagnosed: bool
    """Whether the verdict begins with the result of a search."""
    verdict: Sequence[str]
    every_cure: Sequence[str]
    """The cures that the verdict leaves out, with those that it gives; empty if it gives all."""
    limits: Sequence[str]
    """What the records and the design cannot show, in sentences."""
    tests: pd.DataFrame
    contrasts: pd.DataFrame
    interactions: pd.DataFrame
    rates: pd.DataFrame
    curves: Mapping[str, pd.DataFrame]
    """Kaplan-Meier by factor."""
    incidence: Mapping[str, pd.DataFrame]
    """By factor."""
    headroom: tuple[str, pd.DataFrame] | None
    """A cell_id and its headroom samples: the reference's, or else a finite cell's; None if no cell took any."""
    hypotheses: pd.DataFrame
    """One row per prediction: name, claim, verdict (of the claim), prediction, rule, outcome, says, cells."""

    @property
    def factors(self) -> list[str]:
        """The factors that vary, without the seed."""
        return factors_of(self.times)


@dataclass(frozen=True)
class Judged:
    """The runs of a grid, and what they are compared with."""

    records: Sequence[CellRecord]
    autopsies: Mapping[str, Autopsy]
    histories: Mapping[str, History]
    grid: Grid
    chosen: Combination | None
    """The reference that the user or a diagnosis requested."""
    diagnoses: Sequence[DiagnosisRecord]
    skipped: Sequence[str]
    """Sentences about records that are not counted."""


def judge(directory: GridDirectory, reference: Sequence[str] = (), read: GridRecords | None = None) -> Judged:
    """The runs of a grid's directory. InputError if it holds no finished cell, or not the requested reference.

    `read`: its records, if they were read already.
    """
    read = read or directory.read()
    if not read.records:
        raise InputError(f"{directory.path} holds no finished cell: run its grid first.")
    records, doubles = _without_doubles(_in_order(read.records))
    autopsies = {r.cell_id: read.autopsies[r.cell_id] for r in records if r.cell_id in read.autopsies}
    histories = read_histories(directory, records)
    grid = Grid(records, autopsies, {i: column(history, "loss").tolist() for i, history in histories.items()})
    diagnoses, damaged = read_diagnoses(directory.path)
    chosen = _chosen(grid, reference) if reference else _diagnosed(grid, diagnoses)
    skipped = [*doubles, *(f"skipped: {error}" for error in [*read.untrusted, *damaged])]
    return Judged(records, autopsies, histories, grid, chosen, diagnoses, skipped)


def gather(directory: GridDirectory, hypotheses: Path | None, reference: Sequence[str] = ()) -> Evidence:
    """Evidence of a grid's directory; errors as in `judge`."""
    judged = judge(directory, reference)
    records, histories, grid, chosen = judged.records, judged.histories, judged.grid, judged.chosen
    onsets = onset_table(records, judged.autopsies)
    times = durations(onsets)
    best = chosen or grid.reference or next(iter(grid.combinations.values()))
    base = dict(best.levels)
    compared = contrasts(times, base, histories)
    tested = factor_tests(times)
    event_rates = rates(times)
    cards = event_cards(grid, chosen)
    return Evidence(
        grid_id=directory.grid_id,
        path=directory.path,
        records=records,
        autopsies=judged.autopsies,
        histories=histories,
        onsets=onsets,
        times=times,
        base=base,
        reference=format_levels(best.levels) if chosen or grid.reference else "",
        sentences=sentences(records, cards),
        cards=cards,
        diagnosed=bool(judged.diagnoses),
        verdict=[
            *(line for diagnosis in judged.diagnoses for line in _diagnosis_lines(diagnosis)),
            *verdict(grid, chosen),
        ],
        every_cure=every_cure(grid, chosen),
        limits=[*limits(records, times, event_rates, tested, compared), *judged.skipped],
        tests=tested,
        contrasts=compared,
        interactions=interactions(times, base),
        rates=event_rates,
        curves={factor: survival_curves(times, factor) for factor in factors_of(times)},
        incidence={factor: incidence(times, factor) for factor in factors_of(times)},
        headroom=_headroom(directory, [*best.records, *(r for r in records if r.status == "finite")]),
        hypotheses=_decided(hypotheses, records, histories),
    )


def rerun_command(record: CellRecord) -> str:
    """Command that reruns the cell into a new grid; for a script, its name and levels."""
    if "script" in record.factors:
        return typed(f"{record.factors['script']} with", *record.overrides)
    overrides = [o for o in record.overrides if o.partition("=")[0] not in ("out", "horizon", "resume", "dry_run")]
    if unfit := [override for override in overrides if not is_override(override)]:
        return f"none, because the record has {unfit[0]!r:.60}, which sets no level"
    out = f"outputs/again-{record.cell_id[:8]}"
    return typed("python -m src.run", *overrides, f"horizon={record.horizon}", f"out={out}")


def _in_order(records: Sequence[CellRecord]) -> list[CellRecord]:
    """Sorted by the levels of what varies: null first, then numbers by size, then names by letter."""
    table = varying_factors([record.factors for record in records])
    # itertuples of pandas 2 has no rows where there are no columns
    keys = [[_rank(level) for level in row] for row in table.astype(object).to_numpy()]
    return [records[row] for row in sorted(range(len(records)), key=lambda row: keys[row])]


def _without_doubles(records: Sequence[CellRecord]) -> tuple[list[CellRecord], list[str]]:
    """One cell per levels and seed, and a line per duplicate, which an edited data file leaves behind."""
    unique: dict[str, CellRecord] = {}
    lines = []
    for record in records:
        first = unique.setdefault(str(sorted(record.factors.items())), record)
        if first is not record:
            lines.append(
                f"skipped: {record.cell_id} has the same levels and seed as {first.cell_id}: "
                "was its data file edited between the two runs?"
            )
    return list(unique.values()), lines


def _rank(level: Any) -> tuple[int, float, str]:
    if pd.isna(level):
        return 0, 0.0, ""
    return (2, 0.0, level) if isinstance(level, str) else (1, float(level), "")


def _headroom(directory: GridDirectory, records: Sequence[CellRecord]) -> tuple[str, pd.DataFrame] | None:
    for record in records:
        with contextlib.suppress(RecordError):
            if (frame := read_headroom(directory.cell(record.cell_id))) is not None and len(frame):
                return record.cell_id, frame
    return None


def _decided(directory: Path | None, records: Sequence[CellRecord], histories: Mapping[str, History]) -> pd.DataFrame:
    answers = [decide(h, records, histories) for h in read_hypotheses(directory)] if directory else []
    rows = [
        (*(a.hypothesis.name, a.hypothesis.claim, a.verdict), *_prediction_row(d)) for a in answers for d in a.decided
    ]
    names = ["name", "claim", "verdict", "prediction", "rule", "outcome", "says", "cells"]
    return pd.DataFrame(rows, columns=names)


def _prediction_row(decided: Decided) -> tuple[str, str, str, str, list[str]]:
    prediction = decided.prediction
    return prediction.prediction, RULES[prediction.rule], decided.verdict, decided.says, list(decided.cells)


def _chosen(grid: Grid, levels: Sequence[str]) -> Combination:
    """The only combination of the grid that has these levels; InputError if there is none, or several."""
    named = {factor: _spelled(level) for factor, _, level in (override.partition("=") for override in levels)}
    if unknown := sorted(named.keys() - set(grid.factors)):
        raise InputError(f"{unknown[0]} does not vary in this grid: its factors are {', '.join(grid.factors)}.")
    matching = [c for c in grid.combinations.values() if named.items() <= dict(c.levels).items()]
    if len(matching) != 1:
        raise InputError(
            f"--reference {' '.join(levels)} fits {len(matching)} combinations: name a level of each factor."
        )
    if not matching[0].trains:
        raise InputError(f"--reference {' '.join(levels)} does not train: name a combination that does.")
    return matching[0]


def _diagnosed(grid: Grid, diagnoses: Sequence[DiagnosisRecord]) -> Combination | None:
    """The reference of the latest diagnosis in this grid, if it trains."""
    wanted = diagnoses[-1].reference if diagnoses else None
    having = (c for c in grid.combinations.values() if any(record.cell_id == wanted for record in c.records))
    return next((c for c in having if c.trains), None)


def _diagnosis_lines(diagnosis: DiagnosisRecord) -> list[str]:
    """A finished diagnosis as a paragraph of the verdict."""
    return [f"diagnosis of {diagnosis.failing[:8]} against {diagnosis.reference[:8]}", *diagnosis.lines, ""]


def _spelled(level: str) -> str:
    """A level as records spell it: 2e-4 is 0.0002, true is True."""
    if level.lower() in ("true", "false"):
        return level.capitalize()
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return str(kind(level))
    return level
