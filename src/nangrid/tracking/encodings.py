"""Encodes a cell in finite numbers, because W&B's charts drop NaN.

`nonfinite/<clock>` is 0 or 1 at every step. In the summary, the `onset_step` of a censored cell is the number of steps
it survived; `censored` = 1 marks it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from nangrid.records.cell import CLOCKS, CellRecord
from nangrid.records.headroom import LIMITS
from nangrid.records.output.answer import Finding

_ALERT_TITLE = 64
"""Characters that W&B shows of an alert's title."""
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


def answer(finding: Finding) -> dict[str, str]:
    """What an autopsy found, as short texts: what happened, where, why, how sure, and what to change."""
    return {
        "what happened": finding.happened,
        "where": finding.where,
        "operation": finding.operation,
        "how sure is the origin": str(finding.origin.grade),
        "why": f"{finding.title}. {finding.why}",
        "how sure is the reason": str(finding.reason.grade),
        "change first": finding.change[0] if finding.change else "nothing known",
    }


def alert(record: CellRecord, finding: Finding | None, factors: Mapping[str, Any]) -> tuple[str, str]:
    """Title and text of the alert of a run with an onset."""
    assert record.onset is not None
    onset = f"onset at step {record.onset.step}, clock {record.onset.clock}"
    found = [f"{finding.where}: {finding.operation}", finding.why] if finding else []
    title = finding.title if finding else onset
    return title[:_ALERT_TITLE], "\n".join([f"{onset}: {levels(factors)}", *filter(None, found)])


def _is_nonfinite(row: Mapping[str, Any], clock: str) -> bool:
    return bool(row.get(f"nonfinite_{clock}"))
