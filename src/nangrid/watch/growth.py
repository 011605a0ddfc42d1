"""Warns when the largest gradient grows steadily towards the end of its dtype (R3 of huggingface/peft issue 1715).

A straight line is fitted to log2 of the largest gradient of the last steps. It warns only if the line rises, fits well,
and reaches the limit soon. Sudden failures give no such warning; the study in docs/peft1715 counts how often.
"""

from __future__ import annotations

import logging
import math
from collections import deque

import numpy as np
import torch

logger = logging.getLogger(__name__)

WINDOW = 10
"""Steps that the line is fitted to."""
LEAST_FIT = 0.8
"""The share of the variance (R squared) that the line must explain."""
MOST_AHEAD = 100
"""Warn at most this many steps before the limit is reached."""
_NORM_LIMIT = 2.0**64
"""A gradient this large makes the norm overflow, because its square is summed in float32."""


class Growth:
    """Follows the largest gradient of one run; `warnings` holds the sentences logged so far."""

    def __init__(self, dtypes: set[torch.dtype]) -> None:
        self.limit = min([torch.finfo(dtype).max for dtype in dtypes if dtype.is_floating_point] + [_NORM_LIMIT])
        self.warnings: list[str] = []
        self._recent: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._warned = False

    def note(self, step: int, max_gradient: float) -> None:
        """Record the largest |gradient| of a step; warn when growth begins, not again before it has ended."""
        if not math.isfinite(max_gradient) or max_gradient <= 0:
            return
        self._recent.append((step, math.log2(max_gradient)))
        ahead = self._steps_ahead()
        # One warning per period of growth: the next comes only after a step without it.
        begins, self._warned = ahead is not None and not self._warned, ahead is not None
        if not begins:
            return
        first, last = self._recent[0], self._recent[-1]
        sentence = (
            f"step {step}: the largest gradient has grown from {2 ** first[1]:.3g} to {2 ** last[1]:.3g} in "
            f"{last[0] - first[0]} steps; at this rate it exceeds {self.limit:.5g} in about {ahead} steps"
        )
        logger.warning(sentence)
        self.warnings.append(sentence)

    def _steps_ahead(self) -> int | None:
        """Steps until the limit is reached; None if no rising line fits the recent steps or its end is too far off."""
        if len(self._recent) < WINDOW:
            return None
        steps, sizes = np.array(self._recent).T
        # Exponential growth is a straight line in log2.
        slope, start = np.polyfit(steps, sizes, 1)
        spread = float(((sizes - sizes.mean()) ** 2).sum())
        residual = float(((sizes - start - slope * steps) ** 2).sum())
        if slope <= 0 or spread == 0 or 1 - residual / spread < LEAST_FIT:
            return None
        ahead = (math.log2(self.limit) - sizes[-1]) / slope
        return max(0, math.ceil(ahead)) if ahead <= MOST_AHEAD else None
