"""Turns a finished run into the fields of its record."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nangrid.cell.environment import read_environment
from nangrid.integrations import TrainerWatch
from nangrid.records.autopsy import AUTOPSY
from nangrid.records.cell import Seconds, Trains
from nangrid.records.headroom import write_headroom
from nangrid.records.start_from import FACTS
from nangrid.watch import Clocks, Headroom, Ledger, StepReading, Watch
from nangrid.watch.ledger import read_optimizer


@dataclass(frozen=True)
class FinishedRun:
    """A run that has ended, whether a Trainer or a script's loop took its steps."""

    watch: TrainerWatch | Watch
    ledger: Ledger
    headroom: Headroom


def finish(run: FinishedRun, directory: Path, began: float, horizon: int, data_sha256: str) -> dict[str, Any]:
    """Write the headroom samples and return the fields of the cell's record that its run decides.

    `began`: time.perf_counter() before the cell was built. OSError if the records of a failing step are missing.
    """
    watch, ledger = run.watch, run.ledger
    check_written(run)
    _write_headroom(directory, run.headroom, watch.background.texts)
    read_optimizer(watch.inspector.step.optimizer, ledger)
    environment = read_environment(ledger.arithmetic["device"], data_sha256)
    return _record_fields(watch, ledger, began, horizon) | {"environment": environment}


def check_written(run: FinishedRun) -> None:
    """OSError if the records of a failing step are missing."""
    for records in (run.watch.inspector.records, run.watch.inspector.merged_records):
        if records is not None and records.error is not None:
            raise records.error


def _record_fields(watch: TrainerWatch | Watch, ledger: Ledger, began: float, horizon: int) -> dict[str, Any]:
    inspector = watch.inspector
    clocks = inspector.clocks
    onset = clocks.onset
    folder = "" if inspector.autopsy else "frozen/" if inspector.frozen else None
    # The merged autopsies of several ranks lie above the records of each.
    own = "" if inspector.ranks is None else f"rank{inspector.ranks.rank}/"
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
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "autopsy": None if folder is None else f"{folder}{AUTOPSY}",
        "snapshot": None if folder is None else f"{own}{folder}{FACTS}",
        "seconds": Seconds(watch.started_at - began, training, replay_seconds),
        "error": None,
    }


def over_ranks(reading: StepReading, new_tokens: int) -> int:
    """Give the reading the mean loss of all ranks, which is what a Trainer logs; the sum of their new tokens.

    Every rank calls it after each step. Nothing changes in one process.
    """
    if not dist.is_initialized():
        return new_tokens
    sums = torch.tensor([reading.loss, reading.eval_loss or 0.0, new_tokens], dtype=torch.float64)
    dist.all_reduce(sums)
    loss, eval_loss, tokens = sums.tolist()
    reading.loss = loss / dist.get_world_size()
    reading.eval_loss = None if reading.eval_loss is None else eval_loss / dist.get_world_size()
    return int(tokens)


def history_row(reading: StepReading, new_tokens: int) -> dict[str, Any]:
    """One row of `history.parquet`."""
    row = {key: value for key, value in vars(reading).items() if key != "nonfinite"}
    counts = {f"nonfinite_{clock}": count for clock, count in reading.nonfinite.items()}
    return {**row, **counts, "new_tokens": new_tokens}


def _write_headroom(directory: Path, headroom: Headroom, texts: Mapping[int, str]) -> None:
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
