"""Finds which levels, of those in which a failing cell and a reference differ, cause the failure and which cure it.

The search uses one seed and short cells. Its answers are then confirmed at the full horizon with every seed. If the
seeds disagree, the failure is stochastic, and the search is repeated with as many seeds per cell as its answer takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nangrid.analysis.causes import ENOUGH_STEPS, Event, steps_before
from nangrid.diagnosis.budget import Budget
from nangrid.diagnosis.dtype_fields import NarrowedCause, narrow_dtype
from nangrid.diagnosis.grading import Claims, grade_claims
from nangrid.diagnosis.level_search import LevelCauses, LevelSearch
from nangrid.diagnosis.minimal_sets import Changes, MinimalSets, NotMonotoneError, OutOfRunsError
from nangrid.diagnosis.oracle import CellOracle, CellResult, DiagnosisProblem, Log
from nangrid.diagnosis.ranking import rank
from nangrid.diagnosis.seeded_search import Answers, LeftOutSeed, SeededSearch, SeedsDisagreeError
from nangrid.diagnosis.sequential_search import SequentialSearch
from nangrid.grid.plan import CellPlan
from nangrid.records.autopsy import Autopsy
from nangrid.records.errors import InputError


@dataclass(frozen=True)
class Diagnosis:
    """Causes and cures of a failing cell's event, and what it took to find them."""

    failing: CellPlan
    reference: CellPlan
    event: Event
    onset: int
    """Step of the run at which the failing cell fails."""
    first_step: int
    """Step at which all cells began: 0, or where they resumed another run."""
    causes: MinimalSets
    """Minimal causes of the event."""
    cures: MinimalSets
    """Minimal cures of the failing cell. They stop any failure: swapping one event for another cures nothing."""
    cells: int
    """Combinations that were run, whatever the seed."""
    runs: int
    """Cells that were run."""
    spent: bool
    """Whether the allowed runs were spent before everything was decided."""
    horizon: int
    """Steps for which the cures were run."""
    seeds: tuple[int, ...]
    left_out: list[LeftOutSeed]
    """Seeds that tell nothing about the causes, in which others took their place; none if seeds disagree."""
    autopsy: Autopsy | None
    """Autopsy of the failing cell."""
    sequential: SequentialSearch | None
    """The search that tested each cell with several seeds, because they disagree; None if they agree."""
    not_monotone: NotMonotoneError | None
    """Two sets of changes, of which the smaller fails and the larger does not."""
    agreeing: int
    """Further combinations that were run to test monotony, and agree with it."""
    cause_claims: Claims
    """Per cause, the seeds that fail with the event, and the grade."""
    cure_claims: Claims
    """Per cure, the seeds that train, and the grade."""
    narrowed: dict[Changes, NarrowedCause]
    """Per cause with a dtype in it, which of the dtype's fields are sufficient."""
    between: LevelCauses | None
    """Causes with a level between the two sides; None if there are no such levels, or if seeds disagree."""

    @property
    def stochastic(self) -> bool:
        """Whether seeds disagree."""
        return self.sequential is not None


def diagnose(problem: DiagnosisProblem, horizon: int, log: Log) -> Diagnosis:
    """All minimal causes and cures of the failing cell's event.

    The search runs each cell for ENOUGH_STEPS times the steps to the failing onset. One that is finite until then
    counts as not failing. Its answers are confirmed up to `horizon`, or further if the search went further.
    InputError if the failing cell trains, or the reference does not.
    """
    budget = Budget(problem.max_runs)
    failing, reference = _end_points(CellOracle(problem, horizon, log, budget), problem)
    event = _check_end_points(failing, reference, problem.sides, horizon)
    short = ENOUGH_STEPS * (steps_before(failing.record) + 1)
    _announce(problem, failing, event, short, log)
    weights = rank(problem, failing, log)
    full_length = CellOracle(problem, max(short, horizon), log, budget)
    short_cells = CellOracle(problem, short, log, budget)
    all_seeds = SeededSearch(problem, full_length, problem.seeds, event, weights, log)
    screening = SeededSearch(problem, short_cells, problem.seeds[:1], event, weights, log)
    searches, answers, spent = _search(screening, all_seeds)
    reproduced = bool(failing.autopsy and failing.autopsy.reproduced)
    claims = grade_claims(searches, answers, reproduced)
    between = None
    if any(problem.between) and not isinstance(searches[0], SequentialSearch):
        levels = LevelSearch(problem, event, short, log, budget)
        between = levels.run(answers.causes.causes, full_length.horizon, reproduced)
    return _conclude(failing, reference, searches, answers, claims, spent, between)


def _search(screening: SeededSearch, all_seeds: SeededSearch) -> tuple[list[SeededSearch], Answers, bool]:
    """The searches, the one that decided last first; the answers; whether the budget is spent."""
    problem, oracle, log = all_seeds.problem, all_seeds.oracle, all_seeds.log
    answers = None
    try:
        all_seeds.check_reference()
        answers = screening.run()
        one_seed = SeededSearch(problem, oracle, problem.seeds[:1], screening.event, screening.weights, log)
        if not one_seed.confirms(answers):
            first, second = screening.oracle.horizon, oracle.horizon
            log(f"more runs fail after {first} steps: repeating the search for {second} steps")
            answers = one_seed.run()
        if all_seeds.confirms(answers) or len(problem.seeds) == 1:
            return [all_seeds, screening], answers, not (answers.causes.complete and answers.cures.complete)
    except SeedsDisagreeError:
        pass
    except OutOfRunsError:
        everything = MinimalSets([problem.all_changes], [problem.all_changes], complete=False)
        return [all_seeds, screening], answers or Answers(everything, everything), True
    log("seeds disagree: running each combination with as many seeds as its answer takes")
    sequential = SequentialSearch(problem, oracle, problem.seeds, screening.event, screening.weights, log)
    counted = sequential.run()
    if not sequential.told_apart and not oracle.budget.left:
        return [sequential, all_seeds, screening], answers or counted, True
    spent = sequential.told_apart and not (counted.causes.complete and counted.cures.complete)
    return [sequential, all_seeds, screening], counted, spent


def _conclude(
    failing: CellResult,
    reference: CellResult,
    searches: Sequence[SeededSearch],
    answers: Answers,
    claims: tuple[Claims, Claims],
    spent: bool,
    between: LevelCauses | None,
) -> Diagnosis:
    search, problem = searches[0], searches[0].problem
    keys = {key for one in searches for key in one.oracle.results}
    cures = answers.cures.cures
    narrowed = {cause: narrow_dtype(search, cause) for cause in answers.causes.causes}
    return Diagnosis(
        failing=failing.plan,
        reference=reference.plan,
        event=search.event,
        onset=failing.record.first_step + steps_before(failing.record),
        first_step=failing.record.first_step,
        causes=answers.causes,
        cures=answers.cures,
        cells=len({changes for changes, _ in keys} | {frozenset(), problem.all_changes}),
        runs=len(search.oracle.budget.runs),
        spent=spent,
        horizon=search.steps_run(problem.all_changes - cure for cure in cures),
        seeds=problem.seeds,
        left_out=list(search.left_out.values()),
        autopsy=failing.autopsy,
        sequential=search if isinstance(search, SequentialSearch) else None,
        not_monotone=answers.clash,
        agreeing=len(answers.agreeing),
        cause_claims=claims[0],
        cure_claims=claims[1],
        narrowed={cause: fields for cause, fields in narrowed.items() if fields},
        between=between,
    )


def _announce(problem: DiagnosisProblem, failing: CellResult, event: Event, steps: int, log: Log) -> None:
    first_step, total = failing.record.first_step, 2 ** len(problem.changes)
    resumed = f" from step {first_step} on" if first_step else ""
    onset = first_step + steps_before(failing.record)
    log(f"{event} at step {onset}: searching {total} combinations, {steps} steps each{resumed}")


def _end_points(oracle: CellOracle, problem: DiagnosisProblem) -> tuple[CellResult, CellResult]:
    seed = problem.seeds[0]
    keys = [(problem.all_changes, seed), (frozenset[int](), seed)]
    failing, reference = oracle.run(keys)
    if failing is None or reference is None:
        side = 0 if failing is None else 1
        raise InputError(f"{problem.sides[side]} crashes with {oracle.crashes[keys[side]]}.")
    return failing, reference


def _check_end_points(failing: CellResult, reference: CellResult, sides: tuple[str, str], horizon: int) -> Event:
    if failing.event is None:
        raise InputError(f"{sides[0]} does not fail in {horizon} steps: give a longer horizon=, or levels that fail.")
    if reference.event is not None:
        raise InputError(f"{sides[1]} fails too ({reference.event}): give levels that train.")
    return failing.event
