"""Runs one cell: builds it, trains it under the watch, writes its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nangrid.cell.build import background, build_cell, check_cell
from nangrid.cell.config import Config
from nangrid.cell.identity import cell_factors
from nangrid.cell.outcome import FinishedRun, finish, history_row
from nangrid.integrations import HeadroomCallback, train_from, watch_trainer
from nangrid.records.cell import CellRecord, write_record
from nangrid.records.explain.finding import finding_of
from nangrid.records.grid import autopsy_of
from nangrid.records.history import write_history
from nangrid.records.start_from import find_start
from nangrid.tracking import Run, open_run
from nangrid.watch import Headroom, StepReading


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

    Writes `history.parquet` and then, last and atomically, `result.json` into `directory`. `on_step` gets the
    number of each finished step, counted from the cell's first, and its loss. A non-finite run is a result; a
    crash is raised.
    """
    factors = cell_factors(config)
    names: dict[str, Any] = {"cell_id": cell_id, "grid_id": grid_id}
    run = open_run(**vars(config.tracker), **names, directory=directory, config=factors)
    try:
        outcome_fields, rows = _train(config, directory, run, on_step)
        record = CellRecord(**names, overrides=overrides, factors=factors, **outcome_fields)
        write_history(directory, rows)
        write_record(directory, record)
    except BaseException:
        run.crash()
        raise
    autopsy = autopsy_of(directory, record)
    folder = (directory / str(record.autopsy)).parent
    run.finish(record, None if autopsy is None else finding_of(autopsy, folder, with_text=False))
    return record


def _train(
    config: Config, directory: Path, run: Run, on_step: Callable[[int, float], None] | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Build and train; the fields of the record that the run decides, and the rows of the history."""
    began = time.perf_counter()
    cell = build_cell(config, directory)
    cell.ledger.preflight = [str(finding) for finding in check_cell(cell, config, trial=False)]
    rows: list[dict[str, Any]] = []
    hooks = config.headroom if config.model.compile == "off" else 0
    headroom = HeadroomCallback(Headroom(cell.model, hooks))

    def keep(reading: StepReading) -> None:
        rows.append(history_row(reading, cell.trainer.new_tokens[reading.step]))
        run.log(reading.step, rows[-1], [vars(extreme) for extreme in headroom.samples.pop(reading.step, ())])
        if on_step:
            on_step(len(rows) - 1, reading.loss)

    cell.trainer.add_callback(headroom)
    context = background(config, cell.data)
    watch = watch_trainer(cell.trainer, directory, background=context, on_step=keep, keep_every=config.keep_every)
    if config.start_from is None:
        cell.trainer.train()
    else:
        train_from(cell.trainer, find_start(config.start_from))
    finished = FinishedRun(watch, cell.ledger, headroom.headroom)
    return finish(finished, directory, began, config.horizon, cell.data.sha256), rows
