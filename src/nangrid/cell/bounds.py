"""The allowed range of every number on the command line, checked before anything is created."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from nangrid.records.errors import InputError

STEPS = 10**7
"""More optimizer steps than any run takes."""
FINITE = sys.float_info.max

BOUNDS: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "horizon": (1, STEPS),
    "threads": (1, 1024),
    "processes": (1, 64),
    "headroom": (0, STEPS),
    "keep_every": (0, STEPS),
    "model.layers": (1, 1000),
    "vocab.size": (1, 10**6),
    "init.std": (0, FINITE),
    "targets.rank": (1, 2**14),
    "targets.alpha": (1, 10**6),
    "optim.lr": (0, FINITE),
    "optim.eps": (0, FINITE),
    "optim.weight_decay": (0, FINITE),
    "optim.clip": (0, FINITE),
    "optim.warmup": (0, STEPS),
    "data.length": (2, 2**20),
    "data.batch": (1, 2**14),
    "data.accumulation": (1, 2**14),
    "data.held_out": (1, 10**6),
    "data.eval_every": (0, STEPS),
}
"""Key -> lowest and highest value. A range ends where a mistake is more likely than an intention."""


def check_bounds(fields: Mapping[str, Any], group: str = "") -> None:
    """InputError for the first number outside of its range; `fields` are those of one group, or the top-level keys."""
    for field, value in fields.items():
        key = f"{group}.{field}" if group else field
        if key in BOUNDS and value is not None:
            lowest, highest = BOUNDS[key]
            if not lowest <= value <= highest:
                limit = f"at most {highest:.0f}" if lowest <= value and highest < FINITE else f"at least {lowest:g}"
                shown = str(value) if len(str(value)) < 25 else f"{str(value)[:20]}..."
                raise InputError(f"{key}={shown} is out of range: give a number of {limit}.")
