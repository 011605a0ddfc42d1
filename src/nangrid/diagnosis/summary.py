"""How is a diagnosis told in a few plain lines?"""

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


def tell(diagnosis: Diagnosis, problem: DiagnosisProblem, report: str) -> None:
    """Print and keep the event, what is enough for it, what cures it, with the cells that show it; and its origin.

    `report`: the command that makes the page of a grid's directory.
    """
    lines = list(_lines(diagnosis, problem))
    if diagnosis.autopsy is not None:
        lines += explain(diagnosis.autopsy).splitlines()
    out = diagnosis.failing.config.out
    record = DiagnosisRecord(diagnosis.failing.cell_id, diagnosis.reference.cell_id, lines)
    write_diagnosis(GridDirectory.open(out).path, record)
    print("\n".join(["", *lines, f"report: {report} {out}"]))


def _lines(diagnosis: Diagnosis, problem: DiagnosisProblem) -> Iterator[str]:
    total = 2 ** len(problem.changes)
    counted = f"{diagnosis.cells} of {total} combinations, {diagnosis.runs} runs"
    yield f"{diagnosis.event} at step {diagnosis.onset}, by {counted}:"
    if diagnosis.first_step:
        yield f"  all tried from step {diagnosis.first_step} on; what a level does in the steps before was not asked"
    if diagnosis.not_monotone:
        yield f"  {_clash(diagnosis.not_monotone, problem)}: all {total} were run"
    if diagnosis.stochastic:
        yield "  seeds disagree: a cause is what brings it about in any of them, a cure what trains in all"
    causes = diagnosis.causes.causes
    for cause in causes:
        yield f"  enough: {_failing(problem, cause)} ({_rate(diagnosis.met[cause], 'meet it')})"
        for smaller in (s for s in diagnosis.causes.left_out if s < cause):
            yield f"    not decided: whether {_failing(problem, smaller)} alone would be enough"
        if narrowed := diagnosis.narrowed.get(cause):
            yield from _fields(narrowed)
    shared = frozenset.intersection(*causes)
    if len(causes) > 1 and shared:
        yield f"  necessary (in every cause): {_failing(problem, shared)}"
    for cure in diagnosis.cures.cures:
        rate = _rate(diagnosis.trained[cure], f"train {_until(diagnosis)}")
        yield f"  cure: {_reference(problem, cure)} ({rate})"


def _until(diagnosis: Diagnosis) -> str:
    return f"{'on ' if diagnosis.first_step else ''}to step {diagnosis.first_step + diagnosis.horizon}"


def _fields(narrowed: NarrowedCause) -> Iterator[str]:
    total = 2 ** len(narrowed.problem.changes)
    for fields in narrowed.found.causes:
        yield f"    of its fields, enough: {_failing(narrowed.problem, fields)} (by {narrowed.cells} of {total} cells)"


def _rate(rate: Rate, does: str) -> str:
    ids = ", ".join(cell_id[:8] for cell_id in rate.cells)
    return f"{rate.met} of {rate.seeds} seeds {does}, {ids}" if rate.seeds > 1 else f"{does}: {ids}"


def _clash(clash: NotMonotoneError, problem: DiagnosisProblem) -> str:
    return f"not monotone ({_failing(problem, clash.smaller)} meets it, {_failing(problem, clash.larger)} does not)"


def _failing(problem: DiagnosisProblem, changes: Changes) -> str:
    return " ".join(_typed(problem.changes[i][0], problem.changes[i][1]) for i in sorted(changes))


def _reference(problem: DiagnosisProblem, changes: Changes) -> str:
    return " ".join(_typed(problem.changes[i][1], problem.changes[i][0]) for i in sorted(changes))


def _typed(levels: Overrides, other: Overrides) -> str:
    return " ".join(levels) or f"the default of {other[0].partition('=')[0].lstrip('+~')}"
