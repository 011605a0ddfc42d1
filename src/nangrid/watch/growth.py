"""Does the gradient grow towards the end of its format, and when is it there? (R3 of huggingface/peft issue 1715)

A straight line through log2 of the last steps' largest gradient: it says so only where the line rises, fits, and ends
within sight. What fails at once, or jumps, gives no such warning; the study in docs/peft1715 counts how often.
"""

from __future__ import annotations

import logging
import math
from collections import deque

import numpy as np
import torch

logger = logging.getLogger(__name__)

WINDOW = 10
"""Steps that the line goes through."""
FITS = 0.8
"""The share of the variance that it must explain."""
WITHIN_SIGHT = 100
"""Steps ahead."""
_NORM_ENDS = 2.0**64
"""The norm of float32 gradients is a sum of squares in float32."""


class Growth:
    """Follows one run; `said` holds what it warned of."""

    def __init__(self, dtypes: set[torch.dtype]) -> None:
        self.limit = min([torch.finfo(dtype).max for dtype in dtypes if dtype.is_floating_point] + [_NORM_ENDS])
        self.said: list[str] = []
        self._seen: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._warned = False

    def note(self, step: int, max_gradient: float) -> None:
        """The largest |gradient| of a step. Warned is once, and again only after the growth has ended."""
        if not math.isfinite(max_gradient) or max_gradient <= 0:
            return
        self._seen.append((step, math.log2(max_gradient)))
        ahead = self._steps_ahead()
        begins, self._warned = ahead is not None and not self._warned, ahead is not None
        if not begins:
            return
        first, last = self._seen[0], self._seen[-1]
        sentence = (
            f"step {step}: the largest gradient has grown from {2 ** first[1]:.3g} to {2 ** last[1]:.3g} in "
            f"{last[0] - first[0]} steps; so on it passes {self.limit:.3g} in about {ahead} steps"
        )
        logger.warning(sentence)
        self.said.append(sentence)

    def _steps_ahead(self) -> int | None:
        """Until the limit; None where no line that rises, fits and ends within sight goes through the steps."""
        if len(self._seen) < WINDOW:
            return None
        steps, sizes = np.array(self._seen).T
        slope, start = np.polyfit(steps, sizes, 1)
        spread = float(((sizes - sizes.mean()) ** 2).sum())
        left = float(((sizes - start - slope * steps) ** 2).sum())
        if slope <= 0 or spread == 0 or 1 - left / spread < FITS:
            return None
        ahead = (math.log2(self.limit) - sizes[-1]) / slope
        return max(0, math.ceil(ahead)) if ahead <= WITHIN_SIGHT else None
