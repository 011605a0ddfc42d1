"""Runs `diagnose` on truth tables: no cell is trained, everything else is the real thing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import nangrid.diagnosis.diagnose as diagnosis
from nangrid.analysis.causes import Event
from nangrid.diagnosis import level_search
from nangrid.diagnosis.budget import Budget
from nangrid.diagnosis.minimal_sets import OutOfRunsError
from nangrid.diagnosis.oracle import CellKey, DiagnosisProblem

EVENT = Event("fp16-activation-overflow", "forward", "overflow")
OTHER = Event("adam-eps-underflow", "optimizer", "invalid")
Truth = Callable[[frozenset[str], int], bool | Event]
"""Whether a cell with these levels, those of the reference left out, fails with this seed: with EVENT, or another."""


class Result:
    """What the search reads of a cell."""

    autopsy = SimpleNamespace(reproduced=True)

    def __init__(self, fails: bool | Event) -> None:
        self.event = EVENT if fails is True else fails or None
        self.plan = SimpleNamespace(cell_id="")
        frozen = SimpleNamespace(frozen_from=None)
        self.record = SimpleNamespace(
            cell_id="", first_step=0, steps_survived=0, steps_done=16, onset=True if fails else None, trains=frozen
        )

    def has(self, event: Event) -> bool | None:
        """Whether it failed with this event; None if another came first."""
        return None if self.event not in (None, event) else self.event == event

    def trains(self, reference: Any, references: Any) -> bool:
        """Whether it does not fail."""
        return self.event is None


class TruthOracle:
    """Looks cells up in a truth table, within the budget."""

    truth: Truth

    def __init__(self, problem: DiagnosisProblem, horizon: int, log: Any, budget: Budget) -> None:
        self.problem, self.horizon, self.log, self.budget = problem, horizon, log, budget
        self.results: dict[CellKey, Any] = {}

    def run(self, wanted: Iterable[CellKey]) -> list[Any]:
        """See CellOracle.run."""
        keys = list(wanted)
        cells = {(changes, seed): (self._levels(changes), seed) for changes, seed in keys}
        missing = {key: cell for key, cell in cells.items() if key not in self.results}
        affordable = set(self.budget.take(missing.values()))
        allowed = {key: cell for key, cell in missing.items() if cell in affordable}
        self.results |= {key: Result(type(self).truth(*cell)) for key, cell in allowed.items()}
        if len(allowed) < len(missing):
            raise OutOfRunsError
        return [self.results[key] for key in keys]

    def result(self, changes: frozenset[int], seed: int) -> Any:
        """See CellOracle.result."""
        return self.run([(changes, seed)])[0]

    def _levels(self, changes: frozenset[int]) -> frozenset[str]:
        return frozenset(o for level in self.problem.levels(changes) for o in level if not o.endswith("=0"))


def diagnose(truth: Truth, levels: list[int], seeds: int, max_runs: int) -> diagnosis.Diagnosis:
    """The diagnosis between level 1 and level 0 of each factor; `levels`: per factor, how many others there are."""
    TruthOracle.truth = staticmethod(truth)
    diagnosis.CellOracle = level_search.CellOracle = TruthOracle  # type: ignore[assignment,misc]
    diagnosis.rank = lambda problem, failing, log: [1.0] * len(problem.changes)
    problem = DiagnosisProblem(
        changes=tuple(((f"f{number}=1",), (f"f{number}=0",)) for number in range(len(levels))),
        plan=None,  # type: ignore[arg-type]
        executor=None,  # type: ignore[arg-type]
        seeds=tuple(range(seeds)),
        max_runs=max_runs,
        between=tuple(tuple((f"f{f}={n}",) for n in range(2, 2 + more)) for f, more in enumerate(levels)),
    )
    return diagnosis.diagnose(problem, 16, lambda line: None)
