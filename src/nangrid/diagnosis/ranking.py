"""Judges which changes are likely to matter, by what the failing cell left behind."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from nangrid.cell.config import Config
from nangrid.diagnosis.oracle import CellResult, DiagnosisProblem, Log
from nangrid.diagnosis.seeded_search import levels_of_changes
from nangrid.diagnosis.step_replay import survives
from nangrid.records.autopsy import Autopsy
from nangrid.records.errors import InputError

SUGGESTED = 4.0
"""Weight of a change whose opposite the autopsy suggests; 1 is the weight of any other."""
EXCLUDED = 0.25
"""Weight of a change that can only act through earlier updates, if the untrained weights fail on the batch too."""
SURVIVED, FAILED_TOO = 4.0, 0.5
"""Factors on the weight of a change without which the replayed step survives, or fails as well."""
LATE = 4
"""Onset from which a replay (start-up and about 2 steps) costs less than a cell of ENOUGH_STEPS times as many steps."""


def rank(problem: DiagnosisProblem, failing: CellResult, log: Log) -> list[float]:
    """Weight of each change: how likely it is to matter, judged by what the failing cell left behind.

    Its autopsy costs nothing to read. If the onset is late, so that cells take long, its failing step is also replayed
    with each change undone.
    """
    weights = [_weight_by_autopsy(problem, number, failing.autopsy) for number in range(len(problem.changes))]
    _log_weights(problem, weights, SUGGESTED, "most likely (autopsy)", log)
    _log_weights(problem, weights, EXCLUDED, "unlikely (the batch also fails on the untrained weights)", log)
    composed = isinstance(failing.plan.config, Config)  # a step of a user's script cannot be rebuilt under other levels
    if not composed or failing.record.onset is None or failing.record.steps_survived < LATE:
        return weights
    log(f"replaying step {failing.record.onset.step} with one change undone at a time")
    configs = {}
    for number in problem.all_changes:
        with contextlib.suppress(InputError):  # an invalid combination of levels
            levels = problem.levels(problem.all_changes - {number})
            configs[number] = problem.plan(levels, 1, problem.seeds[0]).cell_config
    for number, survived in zip(configs, survives(failing.plan, failing.record, list(configs.values())), strict=True):
        if survived is not None:
            change = levels_of_changes(problem, frozenset({number}))
            log(f"  without {change} the step {'survives' if survived else 'fails too'}")
            weights[number] *= SURVIVED if survived else FAILED_TOO
    return weights


def _weight_by_autopsy(problem: DiagnosisProblem, number: int, autopsy: Autopsy | None) -> float:
    failing, reference = problem.changes[number]
    group = _group((failing or reference)[0])
    if autopsy is None:
        return 1.0
    if group in {_group(suggestion.override) for suggestion in autopsy.suggestions if suggestion.override}:
        return SUGGESTED
    too_late = autopsy.untrained is True and autopsy.phase in ("forward", "backward")
    return EXCLUDED if too_late and group == "optim" else 1.0


def _group(override: str) -> str:
    return override.partition("=")[0].split(".")[0]


def _log_weights(problem: DiagnosisProblem, weights: Sequence[float], weight: float, what: str, log: Log) -> None:
    if named := [levels_of_changes(problem, frozenset({i})) for i, value in enumerate(weights) if value == weight]:
        log(f"{what}: {', '.join(named)}")
