"""Finds which levels, of those in which a failing cell and a reference differ, cause the failure and which cure it.

The search uses one seed and short cells. Its answers are then confirmed at the full horizon with every seed. If the
seeds disagree, the failure is stochastic, and the search is repeated with all seeds in each answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from nangrid.analysis.causes import ENOUGH_STEPS, Event, steps_before
from nangrid.cell.config import Config
from nangrid.diagnosis.dtype_fields import NarrowedCause, narrow_dtype
from nangrid.diagnosis.minimal_sets import Changes, MinimalSets, NotMonotoneError
from nangrid.diagnosis.oracle import CellOracle, CellResult, DiagnosisProblem, Log
from nangrid.diagnosis.seeded_search import Answers, Rate, SeededSearch, levels_of_changes
from nangrid.diagnosis.step_replay import survives
from nangrid.grid.plan import CellPlan
from nangrid.records.autopsy import Autopsy
from nangrid.records.errors import InputError

SUGGESTED = 4.0
"""Weight of a change whose opposite the autopsy suggests; 1 is the weight of any other."""
EXCLUDED = 0.25
"""Weight of a change that can only act through earlier updates, if the untrained weights fail on the batch too."""
SURVIVED, FAILED_TOO = 4.0, 0.5
"""Factors on the weight of a change without which the replayed step survives, or fails as well."""
LATE = 4
"""Onset from which a replay (start-up and about 2 steps) costs less than a cell of ENOUGH_STEPS times as many steps."""


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
    horizon: int
    """Steps for which the cures were run."""
    seeds: tuple[int, ...]
    autopsy: Autopsy | None
    """Autopsy of the failing cell."""
    stochastic: bool
    """Whether seeds disagree, so that every answer is over all of them."""
    not_monotone: NotMonotoneError | None
    """Two sets of changes, of which the smaller fails and the larger does not."""
    failing_seeds: dict[Changes, Rate]
    """Per cause, the seeds that fail with the event."""
    training_seeds: dict[Changes, Rate]
    """Per cure, the seeds that train."""
    narrowed: dict[Changes, NarrowedCause]
    """Per cause with a dtype in it, which of the dtype's fields are sufficient."""


def diagnose(problem: DiagnosisProblem, horizon: int, log: Log) -> Diagnosis:
    """All minimal causes and cures of the failing cell's event.

    The search runs each cell for ENOUGH_STEPS times the steps to the failing onset. One that is finite until then
    counts as not failing. Its answers are confirmed up to `horizon`, or further if the search went further.
    InputError if the failing cell trains, or the reference does not.
    """
    failing, reference = _end_points(CellOracle(problem, horizon, log), problem)
    event = _check_end_points(failing, reference, problem.sides, horizon)
    short = ENOUGH_STEPS * (steps_before(failing.record) + 1)
    _announce(problem, failing, event, short, log)
    weights = rank(problem, failing, log)

    def searching(seeds: Sequence[int], oracle: CellOracle) -> SeededSearch:
        return SeededSearch(problem, oracle, seeds, event, weights, log)

    full_length = CellOracle(problem, max(short, horizon), log)
    screening = searching(problem.seeds[:1], CellOracle(problem, short, log))
    one_seed, all_seeds = searching(problem.seeds[:1], full_length), searching(problem.seeds, full_length)
    answers = screening.run()
    if not one_seed.confirms(answers):
        log(f"more runs fail after {short} steps: repeating the search to step {full_length.horizon}")
        answers = one_seed.run()
    stochastic = not all_seeds.confirms(answers)
    if stochastic:
        log(f"seeds disagree: repeating the search with {len(problem.seeds)} seeds per combination")
        answers = all_seeds.run()
        all_seeds.confirms(answers)
    return _conclude(failing, reference, event, answers, screening, all_seeds, stochastic)


def _conclude(
    failing: CellResult,
    reference: CellResult,
    event: Event,
    answers: Answers,
    screening: SeededSearch,
    search: SeededSearch,
    stochastic: bool,
) -> Diagnosis:
    problem, causes, cures = search.problem, answers.causes.causes, answers.cures.cures
    narrowed = {cause: narrow_dtype(search, cause) for cause in causes}
    keys = {*screening.oracle.results, *search.oracle.results}
    return Diagnosis(
        failing=failing.plan,
        reference=reference.plan,
        event=event,
        onset=failing.record.first_step + steps_before(failing.record),
        first_step=failing.record.first_step,
        causes=answers.causes,
        cures=answers.cures,
        cells=len({changes for changes, _ in keys}),
        runs=len(keys),
        horizon=search.steps_run(problem.all_changes - cure for cure in cures),
        seeds=problem.seeds,
        autopsy=failing.autopsy,
        stochastic=stochastic,
        not_monotone=answers.clash,
        failing_seeds={cause: search.rate(cause, search.has_event) for cause in causes},
        training_seeds={cure: search.rate(problem.all_changes - cure, search.trains) for cure in cures},
        narrowed={cause: fields for cause, fields in narrowed.items() if fields},
    )


def _announce(problem: DiagnosisProblem, failing: CellResult, event: Event, steps: int, log: Log) -> None:
    first_step, total = failing.record.first_step, 2 ** len(problem.changes)
    resumed = f" from step {first_step} on" if first_step else ""
    onset = first_step + steps_before(failing.record)
    log(f"{event} at step {onset}: searching {total} combinations, {steps} steps each{resumed}")


def rank(problem: DiagnosisProblem, failing: CellResult, log: Log) -> list[float]:
    """Weight of each change: how likely it is to matter, judged by what the failing cell left behind.

    Its autopsy costs nothing to read. If the onset is late, so that cells take long, its failing step is also replayed
    with each change undone.
    """
    weights = [_weight_by_autopsy(problem, number, failing.autopsy) for number in range(len(problem.changes))]
    _log_weights(problem, weights, SUGGESTED, "most likely (autopsy)", log)
    _log_weights(problem, weights, EXCLUDED, "unlikely (the batch also fails on the untrained weights)", log)
    composed = isinstance(failing.plan.config, Config)  # a step of a user's script cannot be rebuilt under other levels
    if not composed or failing.record.onset is None or failing.record.steps_survived < LATE:
        return weights
    log(f"replaying step {failing.record.onset.step} with one change undone at a time")
    configs = {}
    for number in problem.all_changes:
        with contextlib.suppress(InputError):  # an invalid combination of levels
            levels = problem.levels(problem.all_changes - {number})
            configs[number] = problem.plan(levels, 1, problem.seeds[0]).cell_config
    for number, survived in zip(configs, survives(failing.plan, failing.record, list(configs.values())), strict=True):
        if survived is not None:
            change = levels_of_changes(problem, frozenset({number}))
            log(f"  without {change} the step {'survives' if survived else 'fails too'}")
            weights[number] *= SURVIVED if survived else FAILED_TOO
    return weights


def _weight_by_autopsy(problem: DiagnosisProblem, number: int, autopsy: Autopsy | None) -> float:
    failing, reference = problem.changes[number]
    group = _group((failing or reference)[0])
    if autopsy is None:
        return 1.0
    if group in {_group(suggestion.override) for suggestion in autopsy.suggestions if suggestion.override}:
        return SUGGESTED
    too_late = autopsy.untrained is True and autopsy.phase in ("forward", "backward")
    return EXCLUDED if too_late and group == "optim" else 1.0


def _group(override: str) -> str:
    return override.partition("=")[0].split(".")[0]


def _log_weights(problem: DiagnosisProblem, weights: Sequence[float], weight: float, what: str, log: Log) -> None:
    if named := [levels_of_changes(problem, frozenset({i})) for i, value in enumerate(weights) if value == weight]:
        log(f"{what}: {', '.join(named)}")


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
