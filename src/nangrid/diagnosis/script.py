"""Diagnoses a user's own training script: plans its runs as cells, and searches them like any others."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nangrid.cell.bounds import check_bounds
from nangrid.cell.config import PROCESSES, to_override
from nangrid.cell.interpreter import PYTHON, absolute_python
from nangrid.cell.script.config import ScriptConfig
from nangrid.diagnosis.diagnose import Diagnosis, diagnose
from nangrid.diagnosis.oracle import DiagnosisProblem, Overrides, cell_title, check_max_runs
from nangrid.diagnosis.summary import print_summary
from nangrid.grid.local import UNGUARDED, LocalExecutor
from nangrid.grid.plan import CellPlan
from nangrid.records.cell import START_FROM
from nangrid.records.errors import InputError
from nangrid.records.safety.secret import refuse_secrets
from nangrid.records.safety.text import say
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
    max_runs: int,
    between: Mapping[str, Sequence[Any]],
) -> Diagnosis:
    """See nangrid.diagnose."""
    # While a new process imports the script, multiprocessing has no parent_process yet, only this mark
    # (python/cpython Lib/multiprocessing/spawn.py, 3.4 to 3.14). Its launcher says what is wrong.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(UNGUARDED)
    _check_numbers(horizon, seeds, threads, out)
    _check(failing, reference, between)
    check_max_runs(max_runs)
    planner = ScriptPlanner.of(
        make_trainer, failing, reference, between, out=out, threads=threads, start_from=start_from
    )
    executor = LocalExecutor(n_jobs)
    executor.check()
    problem = DiagnosisProblem(
        planner.changes,
        planner.plan,
        executor,
        tuple(range(1 if start_from else seeds)),
        ("failing", "reference"),
        max_runs,
        planner.between,
    )
    diagnosis = diagnose(problem, horizon, say)
    print_summary(diagnosis, problem, "nangrid report")
    return diagnosis


@dataclass(frozen=True)
class ScriptPlanner:
    """Plans the runs of a function that differ in some of its levels."""

    function: str
    module: str
    file: str
    failing: Mapping[str, Any]
    reference: Mapping[str, Any]
    levels_between: Mapping[str, Sequence[Any]]
    out: str
    threads: int
    start_from: str | None

    @classmethod
    def of(
        cls,
        make_trainer: Callable[..., Any],
        failing: Mapping[str, Any],
        reference: Mapping[str, Any],
        between: Mapping[str, Sequence[Any]],
        *,
        out: str,
        threads: int,
        start_from: str | None,
    ) -> ScriptPlanner:
        """InputError for a function that another process cannot find."""
        module, file = _module_and_file(make_trainer)
        start = None if start_from is None else find_start(start_from).file
        return cls(make_trainer.__qualname__, module, file, failing, reference, between, out, threads, start)

    @property
    def changes(self) -> tuple[tuple[Overrides, Overrides], ...]:
        """Per key that differs: the failing level and the reference's."""
        keys = [key for key in self.failing if self.failing[key] != self.reference[key]]
        return tuple(((to_override(key, self.failing[key]),), (to_override(key, self.reference[key]),)) for key in keys)

    @property
    def between(self) -> tuple[tuple[Overrides, ...], ...]:
        """Per key that differs: its levels between the two."""
        keys = [key for key in self.failing if self.failing[key] != self.reference[key]]
        return tuple(tuple((to_override(key, level),) for level in self.levels_between.get(key, ())) for key in keys)

    def plan(self, levels: Sequence[Overrides], horizon: int, seed: int) -> CellPlan:
        """The run with these levels; `seed` is added to the seeds that the function sets."""
        values = {
            to_override(key, level): (key, level)
            for key in self.failing
            for level in (self.failing[key], self.reference[key], *self.levels_between.get(key, ()))
        }
        chosen = dict(values[override] for overrides in levels for override in overrides)
        config = ScriptConfig(
            module=self.module,
            function=self.function,
            file=self.file,
            levels={**self.failing, **chosen},
            repeat=seed,
            horizon=horizon,
            out=str(self.out),
            threads=self.threads,
            start_from=self.start_from,
        )
        overrides = [to_override(key, value) for key, value in config.levels.items()]
        return CellPlan(config, overrides, config.cell_id(), cell_title(levels, seed, 0))


def _check_numbers(horizon: int, seeds: int, threads: int, out: str) -> None:
    for key, value in {"horizon": horizon, "seeds": seeds, "threads": threads}.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{key}={value!r} is out of range: give a whole number of at least 1.")
    check_bounds({"horizon": horizon, "threads": threads})
    if not isinstance(out, str | Path) or not str(out).strip():
        raise InputError(f"out={out!r} is no directory: give the name of one, such as out='outputs/diagnose'.")


def _check(failing: Mapping[str, Any], reference: Mapping[str, Any], between: Mapping[str, Sequence[Any]]) -> None:
    if not isinstance(failing, Mapping) or not isinstance(reference, Mapping):
        raise InputError("failing and reference are no dicts: give each as a dict of levels, such as {'lr': 1.0}.")
    if set(failing) != set(reference):
        one_sided = ", ".join(sorted(set(failing) ^ set(reference)))
        raise InputError(f"{one_sided} is given on one side only: give failing and reference the same keys.")
    differing = [key for key in failing if failing[key] != reference[key]]
    if not differing:
        raise InputError("failing and reference are the same run: give at least one key two values.")
    if unknown := [key for key in between if key not in differing]:
        raise InputError(f"between has {unknown[0]}, which has one level: give it two in failing and reference.")
    levels = [(key, level) for key, several in between.items() for level in several]
    for key, value in [*failing.items(), *reference.items(), *levels]:
        refuse_secrets(value, key)
        if not isinstance(value, str | int | float | bool | None):
            kind = type(value).__name__
            raise InputError(f"{key}={value!r} is a {kind}: give a text, a number, True, False or None as a level.")
        if key == PROCESSES and (type(value) is not int or value < 1):
            raise InputError(f"processes={value!r} is out of range: give a whole number of at least 1.")
        if key == PYTHON and value is not None:
            absolute_python(str(value))
        if key in ("seed", "script", START_FROM) or not str(key).isidentifier():
            raise InputError(f"{key} cannot name a level here: give it another name, of letters and digits.")
    for key in differing:
        if to_override(key, failing[key]) == to_override(key, reference[key]):
            raise InputError(f"{key}={failing[key]} reads the same on both sides: give a number or a text, not both.")


def _module_and_file(function: Callable[..., Any]) -> tuple[str, str]:
    """Module and file under which another process finds the function; InputError if it cannot."""
    name = getattr(function, "__qualname__", None)
    if name is None:
        raise InputError(
            f"make_trainer is a {type(function).__name__}: give a function at the top level of a .py file."
        )
    module = sys.modules.get(function.__module__)
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file() or getattr(module, name, None) is not function:
        raise InputError(f"{name} cannot be found from another process: define it at the top level of a .py file.")
    return function.__module__, file
