"""Turns a finished run into the fields of its record."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nangrid.integrations import TrainerWatch
from nangrid.records.autopsy import AUTOPSY
from nangrid.records.cell import Seconds, Trains
from nangrid.records.headroom import write_headroom
from nangrid.watch import Clocks, Headroom, Ledger, StepReading, Watch
from nangrid.watch.state.snapshot import FACTS


def outcome(
    watch: TrainerWatch | Watch, began: float, horizon: int, ledger: Ledger, environment: dict[str, Any]
) -> dict[str, Any]:
    """The fields of a cell's record that its run decides; `began`: time.perf_counter() at the start of its process."""
    inspector = watch.inspector
    clocks = inspector.clocks
    onset = clocks.onset
    folder = "" if inspector.autopsy else "frozen/" if inspector.frozen else None
    replay_seconds = inspector.replay_seconds
    ledger.early_warnings = inspector.growth.warnings
    ledger.warnings += [inspector.unexplained] if inspector.unexplained else []
    training = time.perf_counter() - watch.started_at - replay_seconds
    return {
        "status": "nonfinite" if onset else "finite",
        "horizon": horizon,
        "steps_done": len(clocks.readings),
        "censored": onset is None,
        "onset": onset,
        "clocks": clocks.first,
        "trains": _trains(clocks),
        "ledger": ledger.as_dict(),
        "environment": environment,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "autopsy": None if folder is None else f"{folder}{AUTOPSY}",
        "snapshot": None if folder is None else f"{folder}{FACTS}",
        "seconds": Seconds(watch.started_at - began, training, replay_seconds),
        "error": None,
    }


def history_row(reading: StepReading, new_tokens: int) -> dict[str, Any]:
    """One row of `history.parquet`."""
    row = {key: value for key, value in vars(reading).items() if key != "nonfinite"}
    counts = {f"nonfinite_{clock}": count for clock, count in reading.nonfinite.items()}
    return {**row, **counts, "new_tokens": new_tokens}


def keep_headroom(directory: Path, headroom: Headroom, texts: Mapping[int, str]) -> None:
    """Write the headroom samples, if there are any."""
    if headroom.extremes:
        tokens = {extreme.token: texts.get(extreme.token, "") for extreme in headroom.extremes if extreme.token >= 0}
        write_headroom(directory, [vars(e) | {"text": tokens.get(e.token, "")} for e in headroom.extremes])


def _trains(clocks: Clocks) -> Trains:
    readings = clocks.readings
    return Trains(
        frozen_from=clocks.frozen_from,
        without_gradient=clocks.without_gradient,
        max_update=max(filter(math.isfinite, (r.max_update for r in readings)), default=math.nan),
        loss_first=readings[0].loss,
        loss_last=readings[-1].loss,
    )
