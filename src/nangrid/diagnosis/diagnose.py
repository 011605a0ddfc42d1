"""Which of the levels that tell a failing cell from a training one bring the event about, and which cure it?

The search asks with one seed and short cells; what it found is confirmed with the other seeds to the full horizon.
If they do not agree the outcome is stochastic: the search is made again, with all seeds in each answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from nangrid.analysis.causes import ENOUGH_STEPS, Event, steps_before
from nangrid.cell.config import Config
from nangrid.diagnosis.dtype_fields import NarrowedCause, narrow_dtype
from nangrid.diagnosis.minimal_sets import Changes, MinimalSets, NotMonotoneError
from nangrid.diagnosis.oracle import CellOracle, CellResult, DiagnosisProblem
from nangrid.diagnosis.seeded_search import Log, Rate, Search, typed
from nangrid.diagnosis.step_replay import survives
from nangrid.grid.plan import CellPlan
from nangrid.records.autopsy import Autopsy
from nangrid.records.errors import InputError

SUGGESTED = 4.0
"""How much likelier than another a change is taken to matter that the autopsy suggests to undo."""
EXCLUDED = 0.25
"""The same for what can only act through earlier updates, where the untrained weights fail on the batch too."""
SURVIVED, FAILED_TOO = 4.0, 0.5
"""The same for a change without which the failing step survives its replay, or fails as well."""
LATE = 4
"""The onset from which a replay (a cell's start and about 2 steps) costs less than a cell of ENOUGH_STEPS times it."""


@dataclass(frozen=True)
class Diagnosis:
    """What the search found, and every cell that it looked at."""

    failing: CellPlan
    reference: CellPlan
    event: Event
    onset: int
    """The step of the run."""
    first_step: int
    """From which all of it was tried: 0, or where another run is gone on with."""
    causes: MinimalSets
    """Of the event."""
    cures: MinimalSets
    """Of not training, by whatever event: a change that only makes room for another event cures nothing."""
    cells: int
    """Combinations looked at, whatever the seed."""
    runs: int
    horizon: int
    """Steps to which cures were watched."""
    seeds: tuple[int, ...]
    autopsy: Autopsy | None
    """Of the failing cell."""
    stochastic: bool
    """Whether seeds disagree, so that every answer is of all of them."""
    not_monotone: NotMonotoneError | None
    met: dict[Changes, Rate] = field(default_factory=dict)
    """How many seeds of a cause meet the event."""
    trained: dict[Changes, Rate] = field(default_factory=dict)
    """How many seeds train after a cure."""
    narrowed: dict[Changes, NarrowedCause] = field(default_factory=dict)
    """Per cause with a dtype in it, which of its fields are enough."""


def diagnose(problem: DiagnosisProblem, horizon: int, say: Log) -> Diagnosis:
    """All minimal causes and cures of the failing cell's event. InputError if the two end points are none.

    The search runs a cell for ENOUGH_STEPS times the steps to the failing onset: what is still finite there counts
    as not failing. Confirmed is to the horizon, or as far where that is further.
    """
    failing, reference = _end_points(CellOracle(problem, horizon, say), problem)
    event = _check(failing, reference, problem.sides, horizon)
    first_step = failing.record.first_step
    onset = first_step + steps_before(failing.record)
    short = ENOUGH_STEPS * (onset - first_step + 1)
    total = 2 ** len(problem.changes)
    since = f" from step {first_step} on" if first_step else ""
    say(f"{event} at step {onset}: {total} combinations lie between the two, each is asked for {short} steps{since}")
    weights = rank(problem, failing, say)
    quick = Search(problem, CellOracle(problem, short, say), problem.seeds[:1], event, weights, say)
    whole = CellOracle(problem, max(short, horizon), say)
    alone = Search(problem, whole, problem.seeds[:1], event, weights, say)
    full = Search(problem, whole, problem.seeds, event, weights, say)
    found = quick.run()
    stochastic = False
    if not alone.confirms(found):
        say(f"after {short} steps more happens: asked again, to step {whole.horizon}")
        found = alone.run()
    if not full.confirms(found):
        stochastic = True
        say(f"seeds disagree: every answer is now of {len(problem.seeds)} seeds")
        found = full.run()
        full.confirms(found)
    looked = {*quick.oracle.cells, *full.oracle.cells}
    causes, cures, clash = found
    inside = {cause: narrow_dtype(full, cause) for cause in causes.causes}
    return Diagnosis(
        failing.plan,
        reference.plan,
        event,
        onset,
        first_step,
        causes,
        cures,
        cells=len({changes for changes, _ in looked}),
        runs=len(looked),
        horizon=full.watched(problem.everything - cure for cure in cures.cures),
        seeds=problem.seeds,
        autopsy=failing.autopsy,
        stochastic=stochastic,
        not_monotone=clash,
        met={cause: full.rate(cause, full.meets) for cause in causes.causes},
        trained={cure: full.rate(problem.everything - cure, full.trains) for cure in cures.cures},
        narrowed={cause: narrowed for cause, narrowed in inside.items() if narrowed},
    )


def rank(problem: DiagnosisProblem, failing: CellResult, say: Log) -> list[float]:
    """How likely each change is to matter, from what the failing cell left behind.

    Its autopsy costs nothing. Where the onset is late, and cells so that much longer, its failing step is also
    replayed with each change undone.
    """
    weights = [_by_autopsy(problem, number, failing.autopsy) for number in range(len(problem.changes))]
    _tell(problem, weights, SUGGESTED, "first suspect, by the autopsy", say)
    _tell(problem, weights, EXCLUDED, "last suspect, for the untrained weights fail on this batch too", say)
    known = isinstance(failing.plan.config, Config)
    if not known or failing.record.onset is None or failing.record.steps_survived < LATE:
        return weights
    say(f"replaying step {failing.record.onset.step} with one change undone at a time")
    others = {}
    for number in problem.everything:
        with contextlib.suppress(InputError):  # levels that do not go together
            levels = problem.levels(problem.everything - {number})
            others[number] = problem.plan(levels, 1, problem.seeds[0]).cell_config
    answers = survives(failing.plan, failing.record, list(others.values()))
    for number, survived in zip(others, answers, strict=True):
        if survived is not None:
            say(f"  {typed(problem, frozenset({number}))} undone: the step {'survives' if survived else 'fails too'}")
            weights[number] *= SURVIVED if survived else FAILED_TOO
    return weights


def _by_autopsy(problem: DiagnosisProblem, number: int, autopsy: Autopsy | None) -> float:
    failing, kept = problem.changes[number]
    group = (failing or kept)[0].partition("=")[0].split(".")[0]
    if autopsy is None:
        return 1.0
    if group in {s.override.partition("=")[0].split(".")[0] for s in autopsy.suggestions if s.override}:
        return SUGGESTED
    too_late = autopsy.untrained is True and autopsy.phase in ("forward", "backward")
    return EXCLUDED if too_late and group == "optim" else 1.0


def _tell(problem: DiagnosisProblem, weights: Sequence[float], weight: float, what: str, say: Log) -> None:
    if named := [typed(problem, frozenset({i})) for i, own in enumerate(weights) if own == weight]:
        say(f"{what}: {', '.join(named)}")


def _end_points(oracle: CellOracle, problem: DiagnosisProblem) -> tuple[CellResult, CellResult]:
    seed = problem.seeds[0]
    failing, reference = oracle.look([(problem.everything, seed), (frozenset(), seed)])
    if failing is None or reference is None:
        raise InputError(f"{problem.sides[0 if failing is None else 1]} crashes: its cell's log says why.")
    return failing, reference


def _check(failing: CellResult, reference: CellResult, sides: tuple[str, str], horizon: int) -> Event:
    if failing.event is None:
        raise InputError(f"{sides[0]} does not fail in {horizon} steps: give a longer horizon=, or levels that fail.")
    if reference.event is not None:
        raise InputError(f"{sides[1]} fails too ({reference.event}): give levels that train.")
    return failing.event
