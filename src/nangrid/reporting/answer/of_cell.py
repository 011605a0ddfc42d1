"""Answers about one cell of a grid."""

from __future__ import annotations

from pathlib import Path

from nangrid.analysis.evidence import Judged, judge, rerun_command
from nangrid.analysis.verdict import event_cards
from nangrid.records.cell import CLOCKS, CellRecord
from nangrid.records.errors import InputError
from nangrid.records.explain.finding import clock_name, finding_of
from nangrid.records.grid import GRID, GridDirectory, autopsy_of
from nangrid.records.output.answer import CRASHED, FAILED, HEALTHY, UNFINISHED, Answer, EventCard, Finding
from nangrid.records.safety.command import typed
from nangrid.reporting.answer.folder import sentence_of


def of_cell(folder: Path, record: CellRecord, *, with_text: bool) -> Answer:
    """The answer about a finished cell; the other runs of its grid tell what causes its event and cures it."""
    if record.error is not None:
        return _crashed(folder, record)
    findings = _findings(folder, record, with_text=with_text)
    failed = bool(findings) or not record.trained
    cards = _cards(folder, record) if failed else []
    return Answer(
        about="cell",
        path=str(folder),
        outcome=FAILED if failed else HEALTHY,
        headline=happened_in(record) if failed else _healthy(record),
        summary=_summary(record, findings) if failed else _healthy(record),
        events=cards,
        findings=findings,
        unchecked=_unchecked(record, cards, failed),
        next=_next(folder, record, cards, findings),
        environment=record.environment,
    )


def of_unfinished_cell(folder: Path) -> Answer:
    """The answer about a cell that has not ended."""
    summary = "This run has no result yet: it is still running, or it was stopped. Type its command again to resume it."
    return Answer("cell", str(folder), UNFINISHED, summary, summary)


def _crashed(folder: Path, record: CellRecord) -> Answer:
    assert record.error is not None
    kind = "was stopped by its time limit" if record.status == "timeout" else "crashed"
    summary = f"The run {kind} after {record.steps_done} steps: {record.error.type}: {record.error.message}."
    unchecked = ["whether a number was non-finite: the run ended before the watch could tell"]
    command = rerun_command(record)
    about = ("cell", str(folder), CRASHED, summary, summary)
    return Answer(*about, unchecked=unchecked, next=command, environment=record.environment)


def _findings(folder: Path, record: CellRecord, *, with_text: bool) -> list[Finding]:
    autopsy = autopsy_of(folder, record)
    if autopsy is None:
        return []
    return [finding_of(autopsy, (folder / str(record.autopsy)).parent, with_text=with_text)]


def _cards(folder: Path, record: CellRecord) -> list[EventCard]:
    """The card of the cell's event, where its grid has other runs to compare it with."""
    grid = folder.parent.parent
    if folder.parent.name != "cells" or not (grid / GRID).exists():
        return []
    try:
        judged: Judged = judge(GridDirectory.at(grid))
    except InputError:
        return []
    return event_cards(judged.grid, judged.chosen, record.cell_id) if len(judged.records) > 1 else []


def happened_in(record: CellRecord) -> str:
    """When each clock tripped, or what else went wrong, in one sentence."""
    tripped = [(record.clocks[clock], CLOCKS.index(clock), clock) for clock in CLOCKS]
    steps = [(clock_name(clock), step) for step, _, clock in sorted(t for t in tripped if t[0] is not None)]
    if steps:
        (clock, step), *later = steps
        rest = "".join(f", {name} in step {when}" for name, when in later)
        return f"{clock[0].upper()}{clock[1:]} became non-finite in step {step}{rest}."
    if record.trains.frozen_from is not None:
        return (
            f"From step {record.trains.frozen_from} on the gradient norm is infinite, so clipping makes every update "
            "zero and nothing is learned."
        )
    count = len(record.trains.without_gradient)
    return f"{count} trainable parameter{'s' * (count != 1)} never received a gradient, so not all of it is trained."


def _summary(record: CellRecord, findings: list[Finding]) -> str:
    return happened_in(record) + (
        f" {sentence_of(findings[0]).removeprefix(findings[0].happened)[1:]}" * bool(findings)
    )


def _healthy(record: CellRecord) -> str:
    losses = f"{record.trains.loss_first:.3g} to {record.trains.loss_last:.3g}" if record.trains.loss_last else ""
    loss = f" (loss {losses})" if losses and record.trains.loss_first is not None else ""
    return (
        f"Nothing went wrong: the run stayed finite for {record.steps_done} steps{loss}, and every parameter trained."
    )


def _unchecked(record: CellRecord, cards: list[EventCard], failed: bool) -> list[str]:
    if not failed:
        return [f"what happens after {record.steps_done} steps, where the run ended"]
    if not cards:
        return ["which level causes it: one run cannot tell, a grid or a diagnosis compares it with one that trains"]
    return cards[0].undecided


def _next(folder: Path, record: CellRecord, cards: list[EventCard], findings: list[Finding]) -> str:
    """The command that tries the first change on the failing step, or trains with it."""
    if record.snapshot is None or "script" in record.factors or "processes" in record.factors:
        return ""
    cured = [cure.levels for card in cards for cure in card.cures]
    advised = [[text] for finding in findings for text in finding.overrides]
    levels = next(iter([*cured, *advised]), [])
    return typed("python -m src.replay", folder, *levels) if levels else ""
