"""Compares the losses of cells at the same step: additively, so that negative losses and zero are compared too.

A loss is no worse than another if it is above it by no more than the tolerance: the spread over the seeds of the cell
that is compared with, or 5 % of its size where that is more, or where there is one seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median, stdev

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
