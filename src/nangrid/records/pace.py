"""Estimates how long the remaining cells will take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from nangrid.records.cell import CellRecord


@dataclass(frozen=True)
class Pace:
    """Seconds from a cell's start to its first step, seconds per step, and the source of both."""

    setup: float
    step: float
    source: str

    def cell_seconds(self, horizon: int) -> float:
        """Seconds of a cell that reaches its horizon; one that goes non-finite ends sooner."""
        return self.setup + horizon * self.step


MEASURED = {
    "tiny": Pace(1.5, 0.2, "measured on two AVX2 cores"),
    "gemma3-270m": Pace(6.0, 6.0, "measured on two AVX2 cores"),
}
"""For a model without a finished cell; measured by bench/cell_cost.py."""


def pace(model: str, records: Iterable[CellRecord]) -> Pace | None:
    """From the finished cells of the model, else from MEASURED, else None."""
    done = [r for r in records if r.factors.get("model", "").rstrip("*") == model and r.error is None and r.steps_done]
    if not done:
        return MEASURED.get(model)
    step = median(record.seconds.train / record.steps_done for record in done)
    return Pace(
        median(record.seconds.setup for record in done),
        step,
        f"from {len(done)} finished {'run' if len(done) == 1 else 'runs'} of {model}",
    )


def format_duration(seconds: float) -> str:
    """Seconds below 90 s, then minutes, then hours: no more digits than an estimate has."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{round(minutes)} min" if minutes < 90 else f"{minutes / 60:.1f} h"
