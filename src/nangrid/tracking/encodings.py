"""How is a cell put into finite numbers? W&B's charts drop NaN, and so the very thing a reader looks for.

`nonfinite/<clock>` is 0 or 1 at every step, and in the summary a censored cell has the steps it survived as
`onset_step`, told apart by `censored` = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from nangrid.records.cell import CLOCKS, CellRecord, Onset
from nangrid.records.headroom import LIMITS

_CHARTED = ("loss", "grad_norm", "lr", "max_gradient", "max_update", "eval_loss")


def charted(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is plotted of one row of `history.parquet`."""
    measured = {key: row[key] for key in _CHARTED if row.get(key) is not None}
    return measured | {f"nonfinite/{clock}": int(_rings(row, clock)) for clock in CLOCKS}


def bits_left(looks: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """headroom/<kind>/<format>: log2(limit / largest |value| of any module), below 0 where it would overflow."""
    largest: dict[str, float] = {}
    for look in looks:
        largest[look["kind"]] = max(largest.get(look["kind"], 0.0), look["absmax"])
    return {
        f"headroom/{kind}/{name}": math.log2(limit / size)
        for kind, size in largest.items()
        for name, limit in LIMITS.items()
        if 0 < size < math.inf
    }


def onset(step: int, row: Mapping[str, Any]) -> Onset | None:
    """The first clock to ring in one row, in their order inside a step."""
    return next((Onset(step, clock) for clock in CLOCKS if _rings(row, clock)), None)


def levels(factors: Mapping[str, Any]) -> str:
    """The cell's levels on one line, as they are typed; the fields below them left out."""
    return " ".join(f"{key}={value}" for key, value in factors.items() if "." not in key)


def summary(record: CellRecord) -> dict[str, Any]:
    """The outcome in finite numbers: where no clock rang, `onset_step` is the step after the last."""
    return {
        "onset_step": record.first_step + record.steps_survived,
        "onset_clock": record.onset.clock if record.onset else "none",
        "censored": int(record.onset is None),
        "steps_survived": record.steps_survived,
        "status": record.status,
        "trains": int(record.trained),
        "ledger": record.ledger,
    }


def _rings(row: Mapping[str, Any], clock: str) -> bool:
    return bool(row.get(f"nonfinite_{clock}"))
