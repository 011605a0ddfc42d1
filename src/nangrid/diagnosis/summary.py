"""Prints a finished diagnosis, and keeps it with its grid."""

from __future__ import annotations

from collections.abc import Iterator

from nangrid.analysis.claims import Count
from nangrid.cell.interpreter import difference
from nangrid.diagnosis.diagnose import Diagnosis
from nangrid.diagnosis.dtype_fields import NarrowedCause
from nangrid.diagnosis.level_search import LevelCauses
from nangrid.diagnosis.minimal_sets import Changes, NotMonotoneError
from nangrid.diagnosis.oracle import DiagnosisProblem, Overrides
from nangrid.diagnosis.seeded_search import LeftOutSeed, Rate
from nangrid.diagnosis.sequential_search import SequentialSearch
from nangrid.records.diagnosis import ClaimRecord, DiagnosisRecord, write_diagnosis
from nangrid.records.explain import explain
from nangrid.records.grid import GridDirectory
from nangrid.records.safety.command import typed
from nangrid.records.safety.text import say


def print_summary(diagnosis: Diagnosis, problem: DiagnosisProblem, report: str) -> tuple[str, DiagnosisRecord]:
    """Print and keep the event, its causes and cures with the cells that prove them, and its origin.

    Returns the grid's directory and the record. `report`: the command that writes the page of a grid's directory.
    """
    lines = list(_lines(diagnosis, problem))
    if diagnosis.autopsy is not None:
        lines += explain(diagnosis.autopsy).splitlines()
    out = diagnosis.failing.config.out
    claims = list(_claims(diagnosis, problem))
    record = DiagnosisRecord(diagnosis.failing.cell_id, diagnosis.reference.cell_id, lines, claims)
    write_diagnosis(GridDirectory.open(out).path, record)
    say("\n".join(["", *lines, f"report: {typed(report, out)}"]))
    return out, record


def _claims(diagnosis: Diagnosis, problem: DiagnosisProblem) -> Iterator[ClaimRecord]:
    sides = {"cause": (diagnosis.cause_claims, _failing), "cure": (diagnosis.cure_claims, _reference)}
    for kind, (claims, levels_of) in sides.items():
        for changes, claim in claims.items():
            levels, rate = [levels_of(problem, frozenset({i})) for i in sorted(changes)], claim.rate
            yield ClaimRecord(kind, levels, str(claim.grade), rate.count, rate.seeds, list(rate.cells))
    for cause in diagnosis.between.causes if diagnosis.between else []:
        levels, rate = [" ".join(level) for level in cause.levels], cause.claim.rate
        yield ClaimRecord("cause", levels, str(cause.claim.grade), rate.count, rate.seeds, list(rate.cells))


def _lines(diagnosis: Diagnosis, problem: DiagnosisProblem) -> Iterator[str]:
    total = 2 ** len(problem.changes)
    cost = f"{diagnosis.cells} of {total} combinations, {diagnosis.runs} runs"
    yield f"{diagnosis.event} at step {diagnosis.onset} ({cost}):"
    if diagnosis.first_step:
        yield f"  resumed at step {diagnosis.first_step}: earlier effects of the levels are not tested"
    yield from _monotony(diagnosis, problem)
    if diagnosis.sequential is not None:
        yield from _disagreement(diagnosis.sequential, diagnosis.spent)
    for left_out in diagnosis.left_out:
        yield f"  {_left_out(left_out, problem)}"
    causes = diagnosis.causes.causes
    for cause in causes:
        claim = diagnosis.cause_claims[cause]
        yield f"  sufficient: {_failing(problem, cause)} ({_rate(claim.rate, '')}), {claim.graded}"
        for smaller in (changes for changes in diagnosis.causes.skipped if changes < cause):
            yield f"    undecided: whether {_failing(problem, smaller)} alone is sufficient"
        if narrowed := diagnosis.narrowed.get(cause):
            yield from _fields(narrowed)
    shared = frozenset.intersection(*causes)
    if len(causes) > 1 and shared and not diagnosis.spent:
        yield f"  necessary (in every cause): {_failing(problem, shared)}"
    for cure in diagnosis.cures.cures:
        claim = diagnosis.cure_claims[cure]
        trained = f" train for {diagnosis.horizon} steps"
        yield f"  cure: {_reference(problem, cure)} ({_rate(claim.rate, trained)}), {claim.graded}"
    pythons = diagnosis.failing.config.python, diagnosis.reference.config.python
    if pythons[0] != pythons[1]:
        yield f"  the two Pythons, of the failing run and of the reference, differ in {difference(*pythons)}"
    if diagnosis.between:
        yield from _between(diagnosis.between)
    elif any(problem.between):
        yield "  undecided: the levels between, because seeds disagree"
    if diagnosis.spent:
        yield f"  undecided: whether smaller or other causes and cures exist; {diagnosis.runs} runs are spent"


def _monotony(diagnosis: Diagnosis, problem: DiagnosisProblem) -> Iterator[str]:
    if diagnosis.not_monotone and diagnosis.spent:
        yield f"  {_clash(diagnosis.not_monotone, problem)}: minimal among the combinations that were run"
    elif diagnosis.not_monotone:
        total = 2 ** len(problem.changes)
        yield f"  {_clash(diagnosis.not_monotone, problem)}: all {total} combinations were run"
    elif diagnosis.agreeing:
        cells = "1 further cell agrees" if diagnosis.agreeing == 1 else f"{diagnosis.agreeing} further cells agree"
        yield f"  assumed monotone; {cells}"


def _left_out(left_out: LeftOutSeed, problem: DiagnosisProblem) -> str:
    why = f"seed {left_out.seed} is left out of the causes: the failing run fails with {left_out.event} first"
    finite = " and ".join(_failing(problem, cause) for cause in left_out.finite)
    return f"{why}; {finite} alone did not fail" if finite else why


def _disagreement(search: SequentialSearch, spent: bool) -> Iterator[str]:
    ends = f"the failing run fails in {_of(search.failing)} further seeds, the reference in {_of(search.reference)}"
    if search.told_apart:
        yield f"  seeds disagree: {ends}; each combination ran with as many seeds as its answer took"
        yield f"  proven: each answer is wrong with a chance of at most {search.level:.1%}"
    else:
        searched = "combinations were searched with one seed" if spent else "no combination was searched"
        yield f"  seeds disagree: {ends}, which could still be chance; {searched}"


def _of(count: Count) -> str:
    return f"{count.met} of {count.runs}"


def _between(found: LevelCauses) -> Iterator[str]:
    yield f"  with the levels between ({found.rows} further rows of levels):"
    for cause in found.causes:
        levels = " ".join(" ".join(level) for level in cause.levels)
        yield f"    sufficient: {levels} ({_rate(cause.claim.rate, '')}), {cause.claim.graded}"
    if found.undecided:
        yield f"    undecided: {found.undecided} levels or pairs of levels"
    else:
        yield "    every pair of levels was tried: any other cause takes three levels or more"


def _fields(narrowed: NarrowedCause) -> Iterator[str]:
    total = 2 ** len(narrowed.problem.changes)
    for cause in narrowed.fields.causes:
        yield f"    narrowed to: {_failing(narrowed.problem, cause)} ({narrowed.cells} of {total} combinations)"


def _rate(rate: Rate, verb: str) -> str:
    ids = ", ".join(cell_id[:8] for cell_id in rate.cells)
    if rate.seeds > 1:
        return f"{rate.count} of {rate.seeds} seeds{verb}: {ids}"
    return f"one seed{verb.replace(' train', ' trains')}: run {ids}"


def _clash(clash: NotMonotoneError, problem: DiagnosisProblem) -> str:
    return f"{_failing(problem, clash.smaller)} fails, but {_failing(problem, clash.larger)} does not"


def _failing(problem: DiagnosisProblem, changes: Changes) -> str:
    return " ".join(_side(problem.changes[i][0], problem.changes[i][1]) for i in sorted(changes))


def _reference(problem: DiagnosisProblem, changes: Changes) -> str:
    return " ".join(_side(problem.changes[i][1], problem.changes[i][0]) for i in sorted(changes))


def _side(levels: Overrides, other: Overrides) -> str:
    return " ".join(levels) or f"the default of {other[0].partition('=')[0].lstrip('+~')}"
