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
from nangrid.diagnosis.dtype_fields import Drilled, drill_down
from nangrid.diagnosis.minimal_sets import Changes, Found, NotMonotoneError
from nangrid.diagnosis.oracle import Answered, Laboratory, Question
from nangrid.diagnosis.seeded_search import Rate, Say, Search, typed
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
    causes: Found
    """Of the event."""
    cures: Found
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
    drilled: dict[Changes, Drilled] = field(default_factory=dict)
    """Per cause with a dtype in it, which of its fields are enough."""


def diagnose(question: Question, horizon: int, say: Say) -> Diagnosis:
    """All minimal causes and cures of the failing cell's event. InputError if the two end points are none.

    The search runs a cell for ENOUGH_STEPS times the steps to the failing onset: what is still finite there counts
    as not failing. Confirmed is to the horizon, or as far where that is further.
    """
    failing, reference = _end_points(Laboratory(question, horizon, say), question)
    event = _check(failing, reference, question.sides, horizon)
    first_step = failing.record.first_step
    onset = first_step + steps_before(failing.record)
    short = ENOUGH_STEPS * (onset - first_step + 1)
    total = 2 ** len(question.changes)
    since = f" from step {first_step} on" if first_step else ""
    say(f"{event} at step {onset}: {total} combinations lie between the two, each is asked for {short} steps{since}")
    weights = rank(question, failing, say)
    quick = Search(question, Laboratory(question, short, say), question.seeds[:1], event, weights, say)
    whole = Laboratory(question, max(short, horizon), say)
    alone = Search(question, whole, question.seeds[:1], event, weights, say)
    full = Search(question, whole, question.seeds, event, weights, say)
    found = quick.run()
    stochastic = False
    if not alone.confirms(found):
        say(f"after {short} steps more happens: asked again, to step {whole.horizon}")
        found = alone.run()
    if not full.confirms(found):
        stochastic = True
        say(f"seeds disagree: every answer is now of {len(question.seeds)} seeds")
        found = full.run()
        full.confirms(found)
    looked = {*quick.laboratory.cells, *full.laboratory.cells}
    causes, cures, clash = found
    inside = {cause: drill_down(full, cause) for cause in causes.causes}
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
        horizon=full.watched(question.everything - cure for cure in cures.cures),
        seeds=question.seeds,
        autopsy=failing.autopsy,
        stochastic=stochastic,
        not_monotone=clash,
        met={cause: full.rate(cause, full.meets) for cause in causes.causes},
        trained={cure: full.rate(question.everything - cure, full.trains) for cure in cures.cures},
        drilled={cause: drilled for cause, drilled in inside.items() if drilled},
    )


def rank(question: Question, failing: Answered, say: Say) -> list[float]:
    """How likely each change is to matter, from what the failing cell left behind.

    Its autopsy costs nothing. Where the onset is late, and cells so that much longer, its failing step is also
    replayed with each change undone.
    """
    weights = [_by_autopsy(question, number, failing.autopsy) for number in range(len(question.changes))]
    _tell(question, weights, SUGGESTED, "first suspect, by the autopsy", say)
    _tell(question, weights, EXCLUDED, "last suspect, for the untrained weights fail on this batch too", say)
    known = isinstance(failing.plan.config, Config)
    if not known or failing.record.onset is None or failing.record.steps_survived < LATE:
        return weights
    say(f"replaying step {failing.record.onset.step} with one change undone at a time")
    others = {}
    for number in question.everything:
        with contextlib.suppress(InputError):  # levels that do not go together
            levels = question.levels(question.everything - {number})
            others[number] = question.plan(levels, 1, question.seeds[0]).cell_config
    answers = survives(failing.plan, failing.record, list(others.values()))
    for number, survived in zip(others, answers, strict=True):
        if survived is not None:
            say(f"  {typed(question, frozenset({number}))} undone: the step {'survives' if survived else 'fails too'}")
            weights[number] *= SURVIVED if survived else FAILED_TOO
    return weights


def _by_autopsy(question: Question, number: int, autopsy: Autopsy | None) -> float:
    failing, kept = question.changes[number]
    group = (failing or kept)[0].partition("=")[0].split(".")[0]
    if autopsy is None:
        return 1.0
    if group in {suggestion.partition("=")[0].split(".")[0] for suggestion in autopsy.suggestions}:
        return SUGGESTED
    too_late = autopsy.untrained is True and autopsy.phase in ("forward", "backward")
    return EXCLUDED if too_late and group == "optim" else 1.0


def _tell(question: Question, weights: Sequence[float], weight: float, what: str, say: Say) -> None:
    if named := [typed(question, frozenset({i})) for i, own in enumerate(weights) if own == weight]:
        say(f"{what}: {', '.join(named)}")


def _end_points(laboratory: Laboratory, question: Question) -> tuple[Answered, Answered]:
    seed = question.seeds[0]
    failing, reference = laboratory.look([(question.everything, seed), (frozenset(), seed)])
    if failing is None or reference is None:
        raise InputError(f"{question.sides[0 if failing is None else 1]} crashes: its cell's log says why.")
    return failing, reference


def _check(failing: Answered, reference: Answered, sides: tuple[str, str], horizon: int) -> Event:
    if failing.event is None:
        raise InputError(f"{sides[0]} does not fail in {horizon} steps: give a longer horizon=, or levels that fail.")
    if reference.event is not None:
        raise InputError(f"{sides[1]} fails too ({reference.event}): give levels that train.")
    return failing.event
