"""Which of the levels that tell a failing cell from a training one bring the event about, and which cure it?

The search asks with one seed and short cells; what it found is confirmed with the other seeds to the full horizon.
If they do not agree the outcome is stochastic: the search is made again, with all seeds in each answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nangrid.analysis.causes import ENOUGH_STEPS, Event, onset_step
from nangrid.grid.counterfactual import survives
from nangrid.grid.drill import Drilled, drill_down
from nangrid.grid.laboratory import Answered, Laboratory, Question, meets
from nangrid.records.autopsy import Autopsy
from nangrid.records.errors import InputError
from nangrid.search.exhaustive import exhaust
from nangrid.search.minimal import Ask, Changes, Found, NotMonotoneError, search

SUGGESTED = 4.0
"""How much likelier than another a change is taken to matter that the autopsy suggests to undo."""
EXCLUDED = 0.25
"""The same for what can only act through earlier updates, where the untrained weights fail on the batch too."""
SURVIVED, FAILED_TOO = 4.0, 0.5
"""The same for a change without which the failing step survives its replay, or fails as well."""
LATE = 4
"""The onset from which a replay (a cell's start and about 2 steps) costs less than a cell of ENOUGH_STEPS times it."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rate:
    """How often, over seeds, and in which cells."""

    met: int
    seeds: int
    cells: tuple[str, ...]
    """Ids."""


@dataclass(frozen=True)
class Diagnosis:
    """What the search found, and every cell that it looked at."""

    event: Event
    onset: int
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
    event = _check(failing, reference, horizon)
    onset = onset_step(failing.record)
    short = ENOUGH_STEPS * (onset + 1)
    total = 2 ** len(question.changes)
    say(f"{event} at step {onset}: {total} combinations lie between the two, each is asked for {short} steps")
    weights = rank(question, failing, say)
    quick = _Search(question, Laboratory(question, short, say), question.seeds[:1], event, weights, say)
    whole = Laboratory(question, max(short, horizon), say)
    alone = _Search(question, whole, question.seeds[:1], event, weights, say)
    full = _Search(question, whole, question.seeds, event, weights, say)
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
    inside = {cause: full.drill(cause) for cause in causes.causes}
    return Diagnosis(
        event,
        onset,
        causes,
        cures,
        cells=len({changes for changes, _ in looked}),
        runs=len(looked),
        horizon=full.laboratory.horizon,
        seeds=question.seeds,
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
    if failing.record.onset is None or failing.record.onset.step < LATE:
        return weights
    say(f"replaying step {failing.record.onset.step} with one change undone at a time")
    others = {}
    for number in question.everything:
        with contextlib.suppress(InputError):  # levels that do not go together
            levels = question.levels(question.everything - {number})
            others[number] = question.plan(levels, 1, question.seeds[0]).config
    answers = survives(failing.plan, failing.record, list(others.values()))
    for number, survived in zip(others, answers, strict=True):
        if survived is not None:
            say(f"  {_typed(question, frozenset({number}))} undone: the step {'survives' if survived else 'fails too'}")
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
    if named := [_typed(question, frozenset({i})) for i, own in enumerate(weights) if own == weight]:
        say(f"{what}: {', '.join(named)}")


_Answers = tuple[Found, Found, NotMonotoneError | None]


class _Search:
    """Causes and cures, an answer being of all seeds: the event counts if any meets it, a cure if all train."""

    def __init__(
        self,
        question: Question,
        laboratory: Laboratory,
        seeds: Sequence[int],
        event: Event,
        weights: Sequence[float],
        say: Say,
    ) -> None:
        self.question = question
        self.laboratory = laboratory
        self.seeds = seeds
        self.event = event
        self.weights = weights
        self.say = say

    def run(self) -> _Answers:
        causes, clash = self._search(self._brings_it_about)
        cures, other_clash = self._search(self._fails)
        return causes, cures, clash or other_clash

    def confirms(self, found: _Answers) -> bool:
        """Whether all seeds say, to the full horizon, that what borders the causes and the cures does not fail.

        By monotony that decides every smaller set. The causes themselves are run too, to tell how often.
        """
        causes, cures, _ = found
        everything = self.question.everything
        clean = [everything - cure for cure in causes.cures]
        cured = [everything - cure for cure in cures.cures]
        wanted = dict.fromkeys([frozenset(), *clean, *cured, *causes.causes])
        if any((changes, seed) not in self.laboratory.cells for changes in wanted for seed in self.seeds):
            with_seeds = "one seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
            self.say(f"confirming with {with_seeds} to step {self.laboratory.horizon}")
        self.laboratory.look((changes, seed) for changes in wanted for seed in self.seeds)
        for seed in self.seeds:
            reference = self._reference(seed)
            if reference.event is not None:
                raise InputError(f"--reference fails with seed={seed} ({reference.event}): give levels that train.")
        met = any(self.meets(changes, seed) for changes in clean for seed in self.seeds)
        return not met and all(self.trains(changes, seed) is not False for changes in cured for seed in self.seeds)

    def meets(self, changes: Changes, seed: int) -> bool | None:
        """Whether one cell meets the event; None where another event came first, which says nothing of this one."""
        return meets(self.laboratory.one(changes, seed), self.event)

    def drill(self, cause: Changes) -> Drilled | None:
        """Which fields of a dtype in the cause are enough, with a seed that meets the event."""
        for seed in self.seeds:
            answer = self.laboratory.one(cause, seed)
            if answer is not None and meets(answer, self.event):
                horizon = min(self.laboratory.horizon, ENOUGH_STEPS * (onset_step(answer.record) + 1))
                return drill_down(self.question, cause, self.event, seed, horizon, self.say)
        return None

    def trains(self, changes: Changes, seed: int) -> bool | None:
        """Whether one cell trains to a loss no worse than the reference's."""
        answer = self.laboratory.one(changes, seed)
        return None if answer is None else answer.trains(self._reference(seed))

    def rate(self, changes: Changes, happens: Callable[[Changes, int], bool | None]) -> Rate:
        outcomes = {seed: happens(changes, seed) for seed in self.seeds}
        told = [seed for seed, outcome in outcomes.items() if outcome is not None]
        answers = [self.laboratory.one(changes, seed) for seed in told]
        ids = tuple(answer.record.cell_id for answer in answers if answer)
        return Rate(sum(outcomes[seed] is True for seed in told), len(told), ids)

    def _search(self, ask: Ask) -> tuple[Found, NotMonotoneError | None]:
        n = len(self.question.changes)
        try:
            return search(n, ask, self.weights), None
        except NotMonotoneError as clash:
            self.say("not monotone, a further change undoes it: all combinations are run")
            return exhaust(n, ask), clash

    def _brings_it_about(self, changes: Changes) -> bool | None:
        self.say(f"does it come about by {_typed(self.question, changes)} alone?")
        outcomes = []
        for seed in self.seeds:
            outcomes.append(self.meets(changes, seed))
            if outcomes[-1]:
                self.say("  yes")
                return True
        if None not in outcomes:
            self.say("  no: finite")
            return False
        answer = self.laboratory.one(changes, self.seeds[outcomes.index(None)])
        if answer is not None:
            self.say(f"  not decided, another event came first: {answer.event}")
        return None

    def _fails(self, changes: Changes) -> bool | None:
        known = all((changes, seed) in self.laboratory.cells for seed in self.seeds)
        if not known:
            self.say(f"does it train with {_typed(self.question, changes)}?")
        for seed in self.seeds:
            trains = self.trains(changes, seed)
            if trains is None:
                return None
            if not trains:
                answer = self.laboratory.one(changes, seed)
                if not known and answer:
                    self.say(f"  no: {answer.event or 'its loss is worse than the reference'}")
                return True
        if not known:
            self.say("  yes")
        return False

    def _reference(self, seed: int) -> Answered:
        reference = self.laboratory.one(frozenset(), seed)
        if reference is None:
            raise InputError(f"--reference crashes with seed={seed}: give levels that train.")
        return reference


def _end_points(laboratory: Laboratory, question: Question) -> tuple[Answered, Answered]:
    seed = question.seeds[0]
    failing, reference = laboratory.look([(question.everything, seed), (frozenset(), seed)])
    if failing is None or reference is None:
        raise InputError(f"--{'failing' if failing is None else 'reference'} crashes: its cell's log says why.")
    return failing, reference


def _check(failing: Answered, reference: Answered, horizon: int) -> Event:
    if failing.event is None:
        raise InputError(f"--failing does not fail in {horizon} steps: give a longer horizon=, or levels that fail.")
    if reference.event is not None:
        raise InputError(f"--reference fails too ({reference.event}): give levels that train.")
    return failing.event


def _typed(question: Question, changes: Changes) -> str:
    return " ".join(" ".join(question.changes[i][0] or question.changes[i][1]) for i in sorted(changes))
