"""What is kept of a run that has ended, of whatever script it was?"""

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
    """The part of a cell's record that its run decides; `began`: time.perf_counter() when its process did."""
    inspector = watch.inspector
    clocks = inspector.clocks
    onset = clocks.onset
    folder = "" if inspector.autopsy else "frozen/" if inspector.frozen else None
    replaying = inspector.replay_seconds
    ledger.early_warnings = inspector.growth.warnings
    ledger.warnings += [inspector.unexplained] if inspector.unexplained else []
    training = time.perf_counter() - watch.started_at - replaying
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
        "seconds": Seconds(watch.started_at - began, training, replaying),
        "error": None,
    }


def history_row(reading: StepReading, new_tokens: int) -> dict[str, Any]:
    """One row of `history.parquet`."""
    row = {key: value for key, value in vars(reading).items() if key != "nonfinite"}
    counts = {f"nonfinite_{clock}": count for clock, count in reading.nonfinite.items()}
    return {**row, **counts, "new_tokens": new_tokens}


def keep_headroom(directory: Path, headroom: Headroom, texts: Mapping[int, str]) -> None:
    """Write what was seen of the magnitudes, if anything was."""
    if headroom.extremes:
        said = {seen.token: texts.get(seen.token, "") for seen in headroom.extremes if seen.token >= 0}
        write_headroom(directory, [vars(seen) | {"text": said.get(seen.token, "")} for seen in headroom.extremes])


def _trains(clocks: Clocks) -> Trains:
    readings = clocks.readings
    return Trains(
        frozen_from=clocks.frozen_from,
        without_gradient=clocks.without_gradient,
        max_update=max(filter(math.isfinite, (r.max_update for r in readings)), default=math.nan),
        loss_first=readings[0].loss,
        loss_last=readings[-1].loss,
    )
