"""How is a diagnosis told in a few plain lines?"""

from __future__ import annotations

from collections.abc import Iterator

from nangrid.diagnosis.diagnose import Diagnosis
from nangrid.diagnosis.dtype_fields import Drilled
from nangrid.diagnosis.minimal_sets import Changes, NotMonotoneError
from nangrid.diagnosis.oracle import Overrides, Question
from nangrid.diagnosis.seeded_search import Rate
from nangrid.records.diagnosis import DiagnosisRecord, write_diagnosis
from nangrid.records.explain import explain
from nangrid.records.grid import GridDirectory


def tell(diagnosis: Diagnosis, question: Question, report: str) -> None:
    """Print and keep the event, what is enough for it, what cures it, with the cells that show it; and its origin.

    `report`: the command that makes the page of a grid's directory.
    """
    lines = list(_lines(diagnosis, question))
    if diagnosis.autopsy is not None:
        lines += explain(diagnosis.autopsy).splitlines()
    out = diagnosis.failing.config.out
    record = DiagnosisRecord(diagnosis.failing.cell_id, diagnosis.reference.cell_id, lines)
    write_diagnosis(GridDirectory.open(out).path, record)
    print("\n".join(["", *lines, f"report: {report} {out}"]))


def _lines(diagnosis: Diagnosis, question: Question) -> Iterator[str]:
    total = 2 ** len(question.changes)
    counted = f"{diagnosis.cells} of {total} combinations, {diagnosis.runs} runs"
    yield f"{diagnosis.event} at step {diagnosis.onset}, by {counted}:"
    if diagnosis.first_step:
        yield f"  all tried from step {diagnosis.first_step} on; what a level does in the steps before was not asked"
    if diagnosis.not_monotone:
        yield f"  {_clash(diagnosis.not_monotone, question)}: all {total} were run"
    if diagnosis.stochastic:
        yield "  seeds disagree: a cause is what brings it about in any of them, a cure what trains in all"
    causes = diagnosis.causes.causes
    for cause in causes:
        yield f"  enough: {_failing(question, cause)} ({_rate(diagnosis.met[cause], 'meet it')})"
        for smaller in (s for s in diagnosis.causes.left_out if s < cause):
            yield f"    not decided: whether {_failing(question, smaller)} alone would be enough"
        if drilled := diagnosis.drilled.get(cause):
            yield from _fields(drilled)
    shared = frozenset.intersection(*causes)
    if len(causes) > 1 and shared:
        yield f"  necessary (in every cause): {_failing(question, shared)}"
    for cure in diagnosis.cures.cures:
        rate = _rate(diagnosis.trained[cure], f"train {_until(diagnosis)}")
        yield f"  cure: {_reference(question, cure)} ({rate})"


def _until(diagnosis: Diagnosis) -> str:
    return f"{'on ' if diagnosis.first_step else ''}to step {diagnosis.first_step + diagnosis.horizon}"


def _fields(drilled: Drilled) -> Iterator[str]:
    total = 2 ** len(drilled.question.changes)
    for fields in drilled.found.causes:
        yield f"    of its fields, enough: {_failing(drilled.question, fields)} (by {drilled.cells} of {total} cells)"


def _rate(rate: Rate, does: str) -> str:
    ids = ", ".join(cell_id[:8] for cell_id in rate.cells)
    return f"{rate.met} of {rate.seeds} seeds {does}, {ids}" if rate.seeds > 1 else f"{does}: {ids}"


def _clash(clash: NotMonotoneError, question: Question) -> str:
    return f"not monotone ({_failing(question, clash.smaller)} meets it, {_failing(question, clash.larger)} does not)"


def _failing(question: Question, changes: Changes) -> str:
    return " ".join(_typed(question.changes[i][0], question.changes[i][1]) for i in sorted(changes))


def _reference(question: Question, changes: Changes) -> str:
    return " ".join(_typed(question.changes[i][1], question.changes[i][0]) for i in sorted(changes))


def _typed(levels: Overrides, other: Overrides) -> str:
    return " ".join(levels) or f"the default of {other[0].partition('=')[0].lstrip('+~')}"
