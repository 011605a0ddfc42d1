"""Grades the causes and cures of a search: proven, seen but perhaps by chance, or undecided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nangrid.analysis.claims import ALPHA, Grade, graded, more_seeds
from nangrid.diagnosis.minimal_sets import Changes
from nangrid.diagnosis.seeded_search import Answers, Rate, SeededSearch
from nangrid.diagnosis.sequential_search import SequentialSearch

ENOUGH_SEEDS = 2
"""Seeds that must agree before a cell is no accident, unless its replay repeats it to the last bit."""


@dataclass(frozen=True)
class Claim:
    """A cause or a cure with the runs that show it, and whether it could still be chance."""

    rate: Rate
    """Of a cause, the seeds that fail with the event; of a cure, those that train."""
    grade: Grade
    more: int | None = None
    """Seeds to add that would tell whether it is chance, if known."""

    @property
    def graded(self) -> str:
        """The grade in words."""
        return graded(self.grade, self.more)


Claims = dict[Changes, Claim]
"""Claims by their changes."""


def grade_claims(searches: Sequence[SeededSearch], answers: Answers, reproduced: bool) -> tuple[Claims, Claims]:
    """The causes and the cures with their grades.

    `searches`: the one that decided last comes first; an earlier one knows cells for which no runs were left.
    `reproduced`: whether the replay repeated the failing step to the last bit.
    """
    everything = searches[0].problem.all_changes
    causes: Claims = {}
    for cause in answers.causes.causes:
        search = _knowing(searches, cause)
        causes[cause] = _graded(search, search.rate(cause, search.has_event), searches[0], reproduced, cure=False)
    cures: Claims = {}
    for cure in answers.cures.cures:
        search = _knowing(searches, everything - cure)
        rate = search.rate(everything - cure, search.trains)
        cures[cure] = _graded(search, rate, searches[0], reproduced, cure=True)
    if isinstance(searches[0], SequentialSearch):
        return causes, cures
    return causes, _as_sure_as(causes, cures)


def _as_sure_as(causes: Claims, cures: Claims) -> Claims:
    """The cures, none of them proven unless each cause is: a failure that may be rare also spares a cell by chance."""
    unsure = [cause for cause in causes.values() if cause.grade is not Grade.PROVEN]
    if not unsure:
        return cures
    more = max((cause.more or 0 for cause in unsure), default=0) or None
    return {
        cure: replace(claim, grade=Grade.SEEN, more=more) if claim.grade is Grade.PROVEN else claim
        for cure, claim in cures.items()
    }


def grade_agreeing(rate: Rate, seeds: int, reproduced: bool) -> Claim:
    """All seeds agree, and a run repeats itself to the last bit: what it shows is no accident of that run."""
    if rate.seeds < seeds or rate.count < rate.seeds:
        return Claim(rate, Grade.SEEN, (seeds - rate.seeds) or None)
    if rate.seeds < ENOUGH_SEEDS and not reproduced:
        return Claim(rate, Grade.SEEN, ENOUGH_SEEDS - rate.seeds)
    return Claim(rate, Grade.PROVEN)


def _knowing(searches: Sequence[SeededSearch], changes: Changes) -> SeededSearch:
    """The first search that has run a set of changes."""
    return next((s for s in searches if any(of == changes for of, _ in s.oracle.results)), searches[0])


def _graded(knowing: SeededSearch, rate: Rate, last: SeededSearch, reproduced: bool, cure: bool) -> Claim:
    if isinstance(last, SequentialSearch):
        return _sequential(last, rate, cure) if knowing is last else Claim(rate, Grade.UNDECIDED)
    return grade_agreeing(rate, len(last.problem.seeds), reproduced)


def _sequential(search: SequentialSearch, rate: Rate, cure: bool) -> Claim:
    """Each cell was decided by its own test, unless not even the end points were told apart."""
    if not search.told_apart:
        seeds = max(search.failing.runs, search.reference.runs)
        more = more_seeds(search.failing, search.reference, seeds, ALPHA) if seeds else None
        return Claim(rate, Grade.SEEN, more)
    if cure and rate.count < rate.seeds and not search.reference.met:
        return Claim(rate, Grade.SEEN)  # it fails less often than the failing cell, but the reference never failed
    return Claim(rate, Grade.PROVEN)
