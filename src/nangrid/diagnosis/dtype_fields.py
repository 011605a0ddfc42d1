"""Narrows a dtype that is a cause down to the fields (storage, compute, adapter, autocast) that matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from nangrid.analysis.causes import ENOUGH_STEPS, steps_before
from nangrid.cell.config import DtypeConfig, to_override
from nangrid.diagnosis.minimal_sets import Changes, MinimalSets
from nangrid.diagnosis.oracle import CellOracle, DiagnosisProblem, Overrides
from nangrid.diagnosis.seeded_search import SeededSearch
from nangrid.grid.plan import CellPlan
from nangrid.records.errors import InputError

GROUP = "dtype"


@dataclass(frozen=True)
class NarrowedCause:
    """Minimal sets of dtype fields that are sufficient, the rest of the cause being unchanged."""

    problem: DiagnosisProblem
    fields: MinimalSets
    cells: int
    """Number of cells that the search used."""


def narrow_dtype(full: SeededSearch, cause: Changes) -> NarrowedCause | None:
    """Search the fields in which the failing and the reference dtype differ, with one seed that has the event.

    None if the cause holds no dtype, the two dtypes differ in one field only, or no seed has the event.
    """
    run = [(seed, result) for (of, seed), result in full.oracle.results.items() if of == cause and result]
    seed, result = next(((seed, result) for seed, result in run if result.has(full.event)), (None, None))
    if seed is None or result is None:
        return None
    horizon = min(full.oracle.horizon, ENOUGH_STEPS * (steps_before(result.record) + 1))
    problem = _field_problem(full.problem, cause, seed, horizon)
    budget = full.oracle.budget
    if problem is None or len(problem.changes) < 2 or not budget.left:
        return None
    full.log(f"narrowing down: {', '.join(failing[0] for failing, _ in problem.changes)}?")
    oracle = CellOracle(problem, horizon, full.log, budget)
    weights = [1.0] * len(problem.changes)
    minimal = SeededSearch(problem, oracle, [seed], full.event, weights, full.log).causes()
    return NarrowedCause(problem, minimal, len(oracle.results))


def _field_problem(problem: DiagnosisProblem, cause: Changes, seed: int, horizon: int) -> DiagnosisProblem | None:
    """The same problem with one change per dtype field; None if the cause holds no dtype that can be split."""
    number = next((i for i in cause if _names_group(problem.changes[i])), None)
    if number is None:
        return None
    rest = cause - {number}
    try:
        failing, reference = (
            problem.plan(problem.levels(changes), horizon, seed).cell_config.dtype for changes in (cause, rest)
        )
    except InputError:  # a user's script, or a rest of the cause that is invalid with the reference's dtype
        return None
    names = [f.name for f in fields(DtypeConfig) if f.name != "name"]
    differing = [name for name in names if getattr(failing, name) != getattr(reference, name)]
    changes = tuple((_override(name, failing), _override(name, reference)) for name in differing)

    def plan(levels: Sequence[Overrides], horizon: int, seed: int) -> CellPlan:
        # with all fields changed it is the cell of the cause itself, which has been run under its own name
        if list(levels) == [failing for failing, _ in changes]:
            return problem.plan(problem.levels(cause), horizon, seed)
        changed = [level for level, (_, reference) in zip(levels, changes, strict=True) if level != reference]
        return problem.plan([*problem.levels(rest), *changed], horizon, seed)

    return replace(problem, changes=changes, plan=plan, seeds=(seed,))


def _names_group(change: tuple[Overrides, Overrides]) -> bool:
    return any(override.partition("=")[0] == GROUP for side in change for override in side)


def _override(field: str, config: DtypeConfig) -> Overrides:
    return (to_override(f"{GROUP}.{field}", getattr(config, field)),)
