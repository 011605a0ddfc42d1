"""Prints a finished diagnosis, and keeps it with its grid."""

from __future__ import annotations

from collections.abc import Iterator

from nangrid.diagnosis.diagnose import Diagnosis
from nangrid.diagnosis.dtype_fields import NarrowedCause
from nangrid.diagnosis.minimal_sets import Changes, NotMonotoneError
from nangrid.diagnosis.oracle import DiagnosisProblem, Overrides
from nangrid.diagnosis.seeded_search import Rate
from nangrid.records.diagnosis import DiagnosisRecord, write_diagnosis
from nangrid.records.explain import explain
from nangrid.records.grid import GridDirectory
from nangrid.records.safety.command import typed
from nangrid.records.safety.text import say


def print_summary(diagnosis: Diagnosis, problem: DiagnosisProblem, report: str) -> None:
    """Print and keep the event, its causes and cures with the cells that prove them, and its origin.

    `report`: the command that writes the page of a grid's directory.
    """
    lines = list(_lines(diagnosis, problem))
    if diagnosis.autopsy is not None:
        lines += explain(diagnosis.autopsy).splitlines()
    out = diagnosis.failing.config.out
    record = DiagnosisRecord(diagnosis.failing.cell_id, diagnosis.reference.cell_id, lines)
    write_diagnosis(GridDirectory.open(out).path, record)
    say("\n".join(["", *lines, f"report: {typed(report, out)}"]))


def _lines(diagnosis: Diagnosis, problem: DiagnosisProblem) -> Iterator[str]:
    total = 2 ** len(problem.changes)
    cost = f"{diagnosis.cells} of {total} combinations, {diagnosis.runs} runs"
    yield f"{diagnosis.event} at step {diagnosis.onset} ({cost}):"
    if diagnosis.first_step:
        yield f"  resumed at step {diagnosis.first_step}: earlier effects of the levels are not tested"
    if diagnosis.not_monotone:
        yield f"  {_clash(diagnosis.not_monotone, problem)}: all {total} combinations were run"
    if diagnosis.stochastic:
        yield "  seeds disagree: a cause fails with at least one seed, a cure trains with all"
    causes = diagnosis.causes.causes
    for cause in causes:
        yield f"  sufficient: {_failing(problem, cause)} ({_rate(diagnosis.failing_seeds[cause], '')})"
        for smaller in (changes for changes in diagnosis.causes.skipped if changes < cause):
            yield f"    undecided: whether {_failing(problem, smaller)} alone is sufficient"
        if narrowed := diagnosis.narrowed.get(cause):
            yield from _fields(narrowed)
    shared = frozenset.intersection(*causes)
    if len(causes) > 1 and shared:
        yield f"  necessary (in every cause): {_failing(problem, shared)}"
    for cure in diagnosis.cures.cures:
        until = f" to step {diagnosis.first_step + diagnosis.horizon}"
        yield f"  cure: {_reference(problem, cure)} ({_rate(diagnosis.training_seeds[cure], f' train{until}')})"


def _fields(narrowed: NarrowedCause) -> Iterator[str]:
    total = 2 ** len(narrowed.problem.changes)
    for cause in narrowed.fields.causes:
        yield f"    narrowed to: {_failing(narrowed.problem, cause)} ({narrowed.cells} of {total} combinations)"


def _rate(rate: Rate, verb: str) -> str:
    ids = ", ".join(cell_id[:8] for cell_id in rate.cells)
    seeds = f"{rate.count} of {rate.seeds} seeds" if rate.seeds > 1 else "one seed"
    return f"{seeds}{verb if rate.seeds > 1 else verb.replace(' train', ' trains')}: {ids}"


def _clash(clash: NotMonotoneError, problem: DiagnosisProblem) -> str:
    return f"{_failing(problem, clash.smaller)} fails, but {_failing(problem, clash.larger)} does not"


def _failing(problem: DiagnosisProblem, changes: Changes) -> str:
    return " ".join(_side(problem.changes[i][0], problem.changes[i][1]) for i in sorted(changes))


def _reference(problem: DiagnosisProblem, changes: Changes) -> str:
    return " ".join(_side(problem.changes[i][1], problem.changes[i][0]) for i in sorted(changes))


def _side(levels: Overrides, other: Overrides) -> str:
    return " ".join(levels) or f"the default of {other[0].partition('=')[0].lstrip('+~')}"
