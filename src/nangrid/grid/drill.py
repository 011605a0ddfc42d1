"""A level such as dtype=fp16 stands for four fields. Which of them is it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from nangrid.analysis.causes import Event
from nangrid.cell.config import DtypeConfig
from nangrid.grid.laboratory import Laboratory, Overrides, Question, meets
from nangrid.grid.plan import CellPlan
from nangrid.records.errors import InputError
from nangrid.search.exhaustive import exhaust
from nangrid.search.minimal import Changes, Found, NotMonotoneError, search

GROUP = "dtype"


@dataclass(frozen=True)
class Drilled:
    """The fields of the level that are enough, with the rest of the cause as it is."""

    question: Question
    found: Found
    cells: int


def drill_down(
    question: Question, cause: Changes, event: Event, seed: int, horizon: int, say: Callable[[str], None]
) -> Drilled | None:
    """Search among the fields in which the two dtypes differ, with a seed and a horizon in which the cause is enough.

    None: no dtype is in the cause, or it differs in one field only.
    """
    inside = _of_fields(question, cause, seed, horizon)
    if inside is None or len(inside.changes) < 2:
        return None
    say(f"which of {', '.join(failing[0] for failing, _ in inside.changes)} is it?")
    laboratory = Laboratory(inside, horizon, say)

    def ask(changes: Changes) -> bool | None:
        say(f"does it come about by {' '.join(inside.changes[i][0][0] for i in sorted(changes))} alone?")
        answer = laboratory.one(changes, seed)
        met = meets(answer, event)
        if answer is not None:
            undecided = f"  not decided, another event came first: {answer.event}"
            say("  yes" if met else undecided if met is None else "  no: finite")
        return met

    try:
        found = search(len(inside.changes), ask)
    except NotMonotoneError:
        say("not monotone, a further field undoes it: all combinations are run")
        found = exhaust(len(inside.changes), ask)
    return Drilled(inside, found, len(laboratory.cells))


def _of_fields(question: Question, cause: Changes, seed: int, horizon: int) -> Question | None:
    number = next((i for i in cause if _names_group(question.changes[i])), None)
    if number is None:
        return None
    rest = cause - {number}
    try:
        with_it, without = (question.plan(question.levels(c), horizon, seed).config.dtype for c in (cause, rest))
    except InputError:  # the rest of the cause does not go together with the reference's dtype
        return None
    names = [f.name for f in fields(DtypeConfig) if f.name != "name"]
    differing = [name for name in names if getattr(with_it, name) != getattr(without, name)]
    changes = tuple((_typed(name, with_it), _typed(name, without)) for name in differing)

    def plan(levels: Sequence[Overrides], horizon: int, seed: int) -> CellPlan:
        """At either end it is the cell that the search has run, by its own name."""
        if list(levels) == [failing for failing, _ in changes]:
            return question.plan(question.levels(cause), horizon, seed)
        changed = [chosen for chosen, (_, kept) in zip(levels, changes, strict=True) if chosen != kept]
        return question.plan([*question.levels(rest), *changed], horizon, seed)

    return replace(question, changes=changes, plan=plan)


def _names_group(change: tuple[Overrides, Overrides]) -> bool:
    return any(override.partition("=")[0] == GROUP for side in change for override in side)


def _typed(name: str, config: DtypeConfig) -> Overrides:
    return (f"{GROUP}.{name}={getattr(config, name)}",)
