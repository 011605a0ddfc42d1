"""Encodes a cell in finite numbers, because W&B's charts drop NaN.

`nonfinite/<clock>` is 0 or 1 at every step. In the summary, the `onset_step` of a censored cell is the number of steps
it survived; `censored` = 1 marks it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from nangrid.records.cell import CLOCKS, CellRecord, Onset
from nangrid.records.headroom import LIMITS

_CHARTED = ("loss", "grad_norm", "lr", "max_gradient", "max_update", "eval_loss")


def charted(row: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics to plot from one row of `history.parquet`."""
    measured = {key: row[key] for key in _CHARTED if row.get(key) is not None}
    return measured | {f"nonfinite/{clock}": int(_is_nonfinite(row, clock)) for clock in CLOCKS}


def bits_left(samples: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """headroom/<kind>/<format>: log2(limit / largest |value| of any module), below 0 if it would overflow."""
    largest: dict[str, float] = {}
    for sample in samples:
        largest[sample["kind"]] = max(largest.get(sample["kind"], 0.0), sample["absmax"])
    return {
        f"headroom/{kind}/{name}": math.log2(limit / size)
        for kind, size in largest.items()
        for name, limit in LIMITS.items()
        if 0 < size < math.inf
    }


def onset(step: int, row: Mapping[str, Any]) -> Onset | None:
    """The first clock that is non-finite in one row, in their order within a step."""
    return next((Onset(step, clock) for clock in CLOCKS if _is_nonfinite(row, clock)), None)


def levels(factors: Mapping[str, Any]) -> str:
    """Levels of the cell on one line, as typed, without the fields below them."""
    return " ".join(f"{key}={value}" for key, value in factors.items() if "." not in key)


def summary(record: CellRecord) -> dict[str, Any]:
    """The outcome in finite numbers; without an onset, `onset_step` is the step after the last."""
    return {
        "onset_step": record.first_step + record.steps_survived,
        "onset_clock": record.onset.clock if record.onset else "none",
        "censored": int(record.onset is None),
        "steps_survived": record.steps_survived,
        "status": record.status,
        "trains": int(record.trained),
        "ledger": record.ledger,
    }


def _is_nonfinite(row: Mapping[str, Any], clock: str) -> bool:
    return bool(row.get(f"nonfinite_{clock}"))
