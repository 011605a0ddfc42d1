"""Writes and reads `progress.json`, which a running cell replaces after each step."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nangrid.records.codec import decode, encode
from nangrid.records.safety.files import parse_json, read_bounded

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a running cell is."""

    pid: int
    step: int | None
    """The last finished step."""
    horizon: int
    loss: float | None
    phase: str
    """`setup` until the first step is finished, then `train`."""
    began: float
    """Start of the cell, in seconds since the epoch."""
    updated: float
    """Last update, in seconds since the epoch."""
    peak_rss_bytes: int
    """Peak resident memory so far."""

    @property
    def steps_done(self) -> int:
        """Optimizer steps taken."""
        return 0 if self.step is None else self.step + 1


def report_steps(cell: Path, horizon: int) -> Callable[[int, float], None]:
    """Report that the cell has begun; return the function to call with each finished step and its loss."""
    began = time.time()

    def on_step(step: int | None, loss: float | None) -> None:
        phase = "setup" if step is None else "train"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _write(cell, Progress(os.getpid(), step, horizon, loss, phase, began, time.time(), peak))

    on_step(None, None)
    return on_step


def read_progress(cell: Path) -> Progress | None:
    """The cell's last report; None if there is none or it cannot be read."""
    try:
        progress: Progress = decode(Progress, parse_json(read_bounded(cell / PROGRESS)), "it")
    except (OSError, ValueError):
        return None
    return progress if math.isfinite(progress.began) and math.isfinite(progress.updated) else None


def _write(cell: Path, progress: Progress) -> None:
    # Not records.atomic: an fsync per step is slow, and after a power cut this file is useless anyway.
    temporary = cell / f".{PROGRESS}"
    with contextlib.suppress(OSError):  # a full disk must not end a cell because of a progress report
        temporary.write_text(json.dumps(encode(progress)))
        temporary.replace(cell / PROGRESS)
