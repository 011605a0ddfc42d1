"""What happens when one cell is run: build, train under the watch, keep the record."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nangrid.cell.build import Cell, build_cell
from nangrid.cell.config import Config
from nangrid.cell.data import CellData
from nangrid.cell.environment import read_environment
from nangrid.cell.identity import cell_factors
from nangrid.cell.model import DTYPES, device
from nangrid.cell.preflight import look_over
from nangrid.integrations import Looking, unwrapped, watch_trainer
from nangrid.records.autopsy import AUTOPSY
from nangrid.records.cell import CellRecord, Seconds, Trains, write_record
from nangrid.records.headroom import write_headroom
from nangrid.records.history import write_history
from nangrid.tracking import Run, open_run
from nangrid.watch import Background, Clocks, Headroom, Inspector, Reading, read_optimizer
from nangrid.watch.ledger import dtype_name
from nangrid.watch.snapshot import FACTS


def run_cell(
    config: Config,
    directory: Path,
    *,
    cell_id: str,
    grid_id: str,
    overrides: list[str],
    on_step: Callable[[int, float], None] | None = None,
) -> CellRecord:
    """Train one cell to its horizon or to the loss clock after its onset.

    Writes `history.parquet` and then, last and atomically, `result.json` into `directory`. `on_step` gets
    each finished step's number and loss. A non-finite run is a result; whatever crashes is raised.
    """
    factors = cell_factors(config)
    names: dict[str, Any] = {"cell_id": cell_id, "grid_id": grid_id}
    run = open_run(**vars(config.tracker), **names, directory=directory, config=factors)
    try:
        outcome, rows = _train(config, directory, run, on_step)
        record = CellRecord(**names, overrides=overrides, factors=factors, **outcome)
        write_history(directory, rows)
        write_record(directory, record)
    except BaseException:
        run.crash()
        raise
    run.finish(record)
    return record


def _train(
    config: Config, directory: Path, run: Run, on_step: Callable[[int, float], None] | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Build and train; the outcome's part of the record, and the rows of the history."""
    began = time.perf_counter()
    cell = build_cell(config, directory)
    cell.ledger.preflight = [str(finding) for finding in look_over(cell, config, trial=False)]
    rows: list[dict[str, Any]] = []

    def keep(reading: Reading) -> None:
        rows.append(history_row(reading, cell.trainer.new_tokens[reading.step]))
        run.log(reading.step, rows[-1])
        if on_step:
            on_step(reading.step, reading.loss)

    looking = Looking(Headroom(cell.model, config.headroom))
    cell.trainer.add_callback(looking)
    watch = watch_trainer(cell.trainer, directory, background=background(config, cell.data), on_step=keep)
    cell.trainer.train()
    _keep_headroom(directory, looking.headroom, cell.data)
    read_optimizer(unwrapped(cell.trainer.optimizer), cell.ledger)
    outcome = _outcome(config, cell, watch.inspector)
    replaying = watch.inspector.replay_seconds
    training = time.perf_counter() - watch.started_at - replaying
    outcome["seconds"] = Seconds(watch.started_at - began, training, replaying)
    return outcome, rows


def _keep_headroom(directory: Path, headroom: Headroom, data: CellData) -> None:
    if headroom.seen:
        write_headroom(directory, [vars(e) | {"text": data.texts.get(e.token, "")} for e in headroom.seen])


def background(config: Config, data: CellData) -> Background:
    """What an autopsy needs to know of the cell beyond its model."""
    storage = dtype_name(DTYPES[config.dtype.storage])
    return Background(texts=data.texts, first_new_id=data.base_vocab_size, asked_storage=storage)


def history_row(reading: Reading, new_tokens: int) -> dict[str, Any]:
    """One row of `history.parquet`."""
    row = {key: value for key, value in vars(reading).items() if key != "nonfinite"}
    counts = {f"nonfinite_{clock}": count for clock, count in reading.nonfinite.items()}
    return {**row, **counts, "new_tokens": new_tokens}


def _outcome(config: Config, cell: Cell, inspector: Inspector) -> dict[str, Any]:
    clocks = inspector.clocks
    onset = clocks.onset
    folder = "" if inspector.autopsy else "frozen/" if inspector.frozen else None
    return {
        "status": "nonfinite" if onset else "finite",
        "horizon": config.horizon,
        "steps_done": len(clocks.readings),
        "censored": onset is None,
        "onset": onset,
        "clocks": clocks.first,
        "trains": _trains(clocks),
        "ledger": cell.ledger.as_dict(),
        "environment": read_environment(device(), cell.data.sha256),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "autopsy": None if folder is None else f"{folder}{AUTOPSY}",
        "snapshot": None if folder is None else f"{folder}{FACTS}",
        "error": None,
    }


def _trains(clocks: Clocks) -> Trains:
    readings = clocks.readings
    return Trains(
        frozen_from=clocks.frozen_from,
        without_gradient=clocks.without_gradient,
        max_update=max(filter(math.isfinite, (r.max_update for r in readings)), default=math.nan),
        loss_first=readings[0].loss,
        loss_last=readings[-1].loss,
    )
