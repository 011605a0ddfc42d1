"""A level such as dtype=fp16 stands for four fields. Which of them is it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from nangrid.analysis.causes import ENOUGH_STEPS, steps_before
from nangrid.cell.config import DtypeConfig, to_override
from nangrid.diagnosis.minimal_sets import Changes, MinimalSets
from nangrid.diagnosis.oracle import CellOracle, DiagnosisProblem, Overrides
from nangrid.diagnosis.seeded_search import Search
from nangrid.grid.plan import CellPlan
from nangrid.records.errors import InputError

GROUP = "dtype"


@dataclass(frozen=True)
class NarrowedCause:
    """The fields of the level that are enough, with the rest of the cause as it is."""

    problem: DiagnosisProblem
    found: MinimalSets
    cells: int


def narrow_dtype(full: Search, cause: Changes) -> NarrowedCause | None:
    """Search among the fields in which the two dtypes differ, with a seed and a horizon in which the cause is enough.

    None: no dtype is in the cause, it differs in one field only, or no seed meets the event.
    """
    seed = next((seed for seed in full.seeds if full.meets(cause, seed)), None)
    answer = None if seed is None else full.oracle.one(cause, seed)
    if seed is None or answer is None:
        return None
    horizon = min(full.oracle.horizon, ENOUGH_STEPS * (steps_before(answer.record) + 1))
    inside = _of_fields(full.problem, cause, seed, horizon)
    if inside is None or len(inside.changes) < 2:
        return None
    full.say(f"which of {', '.join(failing[0] for failing, _ in inside.changes)} is it?")
    oracle = CellOracle(inside, horizon, full.say)
    found, _ = Search(inside, oracle, [seed], full.event, [1.0] * len(inside.changes), full.say).causes()
    return NarrowedCause(inside, found, len(oracle.cells))


def _of_fields(problem: DiagnosisProblem, cause: Changes, seed: int, horizon: int) -> DiagnosisProblem | None:
    number = next((i for i in cause if _names_group(problem.changes[i])), None)
    if number is None:
        return None
    rest = cause - {number}
    try:
        with_it, without = (problem.plan(problem.levels(c), horizon, seed).cell_config.dtype for c in (cause, rest))
    except InputError:  # a user's own script; or the rest of the cause does not go together with the reference's dtype
        return None
    names = [f.name for f in fields(DtypeConfig) if f.name != "name"]
    differing = [name for name in names if getattr(with_it, name) != getattr(without, name)]
    changes = tuple((_override(name, with_it), _override(name, without)) for name in differing)

    def plan(levels: Sequence[Overrides], horizon: int, seed: int) -> CellPlan:
        """At either end it is the cell that the search has run, by its own name."""
        if list(levels) == [failing for failing, _ in changes]:
            return problem.plan(problem.levels(cause), horizon, seed)
        changed = [chosen for chosen, (_, kept) in zip(levels, changes, strict=True) if chosen != kept]
        return problem.plan([*problem.levels(rest), *changed], horizon, seed)

    return replace(problem, changes=changes, plan=plan)


def _names_group(change: tuple[Overrides, Overrides]) -> bool:
    return any(override.partition("=")[0] == GROUP for side in change for override in side)


def _override(field: str, config: DtypeConfig) -> Overrides:
    return (to_override(f"{GROUP}.{field}", getattr(config, field)),)
