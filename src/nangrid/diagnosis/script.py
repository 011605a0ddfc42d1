"""Diagnoses a user's own training script: plans its runs as cells, and searches them like any others."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nangrid.cell.config import to_override
from nangrid.cell.script.config import ScriptConfig
from nangrid.diagnosis.diagnose import Diagnosis, diagnose
from nangrid.diagnosis.oracle import DiagnosisProblem, Overrides, cell_title, check_max_runs
from nangrid.diagnosis.summary import print_summary
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
    max_runs: int,
    between: Mapping[str, Sequence[Any]],
) -> Diagnosis:
    """See nangrid.diagnose."""
    if multiprocessing.parent_process() is not None:
        raise InputError(
            'nangrid.diagnose was called while the script was imported: put the call under if __name__ == "__main__":'
        )
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
    diagnosis = diagnose(problem, horizon, lambda line: print(line, flush=True))
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
            out=self.out,
            threads=self.threads,
            start_from=self.start_from,
        )
        overrides = [to_override(key, value) for key, value in config.levels.items()]
        return CellPlan(config, overrides, config.cell_id(), cell_title(levels, seed, 0))


def _check(failing: Mapping[str, Any], reference: Mapping[str, Any], between: Mapping[str, Sequence[Any]]) -> None:
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
        if not isinstance(value, str | int | float | bool | None):
            kind = type(value).__name__
            raise InputError(f"{key}={value!r} is a {kind}: give a text, a number, True, False or None as a level.")
        if key in ("seed", "script", START_FROM) or "." in key:
            raise InputError(f"{key} cannot name a level here: give it another name, without a dot.")


def _module_and_file(function: Callable[..., Any]) -> tuple[str, str]:
    """Module and file under which another process finds the function; InputError if it cannot."""
    module = sys.modules.get(function.__module__)
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file() or getattr(module, function.__qualname__, None) is not function:
        raise InputError(
            f"{function.__qualname__} cannot be found from another process: define it at the top level of a .py file."
        )
    return function.__module__, file
