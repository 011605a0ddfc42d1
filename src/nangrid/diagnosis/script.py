"""How does a run of a user's own script become a verdict? Its trainer is built from levels; the search is the same."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nangrid.cell.config import to_override
from nangrid.cell.script.config import ScriptConfig
from nangrid.diagnosis.diagnose import Diagnosis, diagnose
from nangrid.diagnosis.minimal_sets import MOST_CHANGES
from nangrid.diagnosis.oracle import DiagnosisProblem, Overrides
from nangrid.diagnosis.summary import tell
from nangrid.grid.local import LocalExecutor
from nangrid.grid.plan import CellPlan
from nangrid.records.cell import START_FROM
from nangrid.records.errors import InputError
from nangrid.records.start_from import find_start


def diagnose_own(
    make_trainer: Callable[[dict[str, Any]], Any],
    *,
    failing: Mapping[str, Any],
    reference: Mapping[str, Any],
    horizon: int,
    seeds: int,
    n_jobs: int,
    threads: int,
    out: str,
    start_from: str | None,
) -> Diagnosis:
    """See nangrid.diagnose."""
    if multiprocessing.parent_process() is not None:
        raise InputError(
            'nangrid.diagnose is called while the script is imported: put it under if __name__ == "__main__":'
        )
    _check(failing, reference)
    module, file = _where(make_trainer)
    keys = [key for key in failing if failing[key] != reference[key]]
    values = {to_override(key, side[key]): (key, side[key]) for key in keys for side in (failing, reference)}
    start = None if start_from is None else find_start(start_from).file

    def plan(levels: Sequence[Overrides], horizon: int, seed: int) -> CellPlan:
        own = [override for overrides in levels for override in overrides]
        config = ScriptConfig(
            module=module,
            function=make_trainer.__qualname__,
            file=file,
            levels={**failing, **dict(values[override] for override in own)},
            repeat=seed,
            horizon=horizon,
            out=out,
            threads=threads,
            start_from=start,
        )
        title = " ".join([*own, *([f"seed={seed}"] if seed else [])])
        return CellPlan(
            config, [to_override(key, value) for key, value in config.levels.items()], config.cell_id(), title
        )

    executor = LocalExecutor(n_jobs)
    executor.check()
    changes = tuple(((to_override(key, failing[key]),), (to_override(key, reference[key]),)) for key in keys)
    problem = DiagnosisProblem(changes, plan, executor, tuple(range(1 if start else seeds)), ("failing", "reference"))
    found = diagnose(problem, horizon, lambda line: print(line, flush=True))
    tell(found, problem, "nangrid report")
    return found


def _check(failing: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    if set(failing) != set(reference):
        one_sided = ", ".join(sorted(set(failing) ^ set(reference)))
        raise InputError(f"{one_sided} is given on one side only: give failing and reference the same keys.")
    differing = [key for key in failing if failing[key] != reference[key]]
    if not differing:
        raise InputError("failing and reference are the same run: give at least one key two values.")
    if len(differing) > MOST_CHANGES:
        raise InputError(f"{len(differing)} keys differ, at most {MOST_CHANGES} can be searched: give some one value.")
    for key, value in [*failing.items(), *reference.items()]:
        if not isinstance(value, str | int | float | bool | None):
            kind = type(value).__name__
            raise InputError(f"{key}={value!r} is a {kind}: give a text, a number, True, False or None as a level.")
        if key in ("seed", "script", START_FROM) or "." in key:
            raise InputError(f"{key} cannot name a level here: give it another name, without a dot.")


def _where(function: Callable[..., Any]) -> tuple[str, str]:
    """Module and file of a function that another process can find by its name."""
    module = sys.modules.get(function.__module__)
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file() or getattr(module, function.__qualname__, None) is not function:
        raise InputError(
            f"{function.__qualname__} cannot be found from another process: "
            "define it at the top level of a .py file, under its own name."
        )
    return function.__module__, file
