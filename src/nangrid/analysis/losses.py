"""Compares the losses of cells at the same step: additively, so that negative losses and zero are compared too.

A loss is no worse than another if it is above it by no more than the tolerance: the spread over the seeds of the cell
that is compared with, or 5 % of its size where that is more, or where there is one seed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import median, stdev
from typing import Any, TypeVar

K = TypeVar("K", bound=Hashable)

WORSE = 0.05
"""Share of the size of a loss that never counts as a difference."""
LAST = 4
"""Number of final steps whose losses are averaged, because some batches are harder than others."""


def late_loss(losses: Sequence[float], steps: int) -> float:
    """The mean of the last LAST of the first `steps` losses; infinite if there is none or one is NaN."""
    last = losses[max(0, steps - LAST) : steps]
    value = sum(last) / len(last) if last else math.inf
    return math.inf if math.isnan(value) else value


def tolerance(losses: Sequence[float]) -> float:
    """By how much a loss may exceed these, the late losses of one combination per seed, and be no worse."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if not finite:
        return 0.0
    spread = stdev(finite) if len(finite) > 1 else 0.0
    return max(spread, WORSE * abs(median(finite)))


def no_worse(loss: float, reference: float, allowed: float) -> bool:
    """Whether a late loss is finite and above the reference's, with the same seed, by at most `allowed`."""
    return math.isfinite(loss) and loss - reference <= allowed


def excess(series: Mapping[tuple[K, Any], Sequence[float]]) -> dict[K, float]:
    """By how much the loss of each combination exceeds the best, in tolerances of the best: up to 1 is no worse.

    `series` has the losses per (combination, seed), one per step. They are compared at the same step of the same
    batches: by seed, at the median of their last steps (or at the cell's own last step, if earlier). The value is the
    median over seeds. A combination whose cells all have fewer than LAST steps is left out.
    """
    known = {key: losses for key, losses in series.items() if len(losses) >= LAST}
    usual = sorted(map(len, known.values()))[len(known) // 2] if known else 0
    best: dict[tuple[Any, int], float] = {}
    above: dict[K, list[float]] = {}
    for (name, seed), losses in known.items():
        steps = min(len(losses), usual)
        if (seed, steps) not in best:
            rivals = (other for (_, its), other in known.items() if its == seed and len(other) >= steps)
            best[seed, steps] = min(late_loss(other, steps) for other in rivals)
        above.setdefault(name, []).append(late_loss(losses, steps) - best[seed, steps])
    allowed = tolerance([loss for (_, steps), loss in best.items() if steps == usual])
    return {name: _in_tolerances(median(values), allowed) for name, values in above.items()}


def _in_tolerances(above: float, allowed: float) -> float:
    if math.isnan(above):  # inf - inf: the best is no loss either
        return math.inf
    return above / allowed if allowed else (0.0 if above <= 0 else math.inf)
