"""Runs one cell: builds it, trains it under the watch, writes its record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nangrid.cell.build import background, build_cell, check_cell
from nangrid.cell.config import Config
from nangrid.cell.identity import cell_factors
from nangrid.cell.outcome import FinishedRun, check_written, finish, history_row, over_ranks
from nangrid.cell.ranks import rank_zero
from nangrid.integrations import HeadroomCallback, train_from, watch_trainer
from nangrid.records.cell import CellRecord, write_record
from nangrid.records.explain.finding import finding_of
from nangrid.records.grid import autopsy_of
from nangrid.records.history import write_history
from nangrid.records.start_from import find_start
from nangrid.tracking import NoRun, Run, open_run
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
    size = None if config.processes == 1 else config.processes
    # the other ranks are forked before the tracker has threads
    with rank_zero(size, partial(_train_as_another_rank, config, directory)) as others:
        run = open_run(**vars(config.tracker), **names, directory=directory, config=factors)
        try:
            began = time.perf_counter()
            trained = _train(config, directory, run, on_step)
            others.join()
            outcome_fields = finish(trained.run, directory, began, config.horizon, trained.data_sha256)
            record = CellRecord(**names, overrides=overrides, factors=factors, **outcome_fields)
            write_history(directory, trained.rows)
            write_record(directory, record)
        except BaseException:
            run.crash()
            raise
    autopsy = autopsy_of(directory, record)
    folder = (directory / str(record.autopsy)).parent
    run.finish(record, None if autopsy is None else finding_of(autopsy, folder, with_text=False))
    return record


@dataclass(frozen=True)
class _Trained:
    run: FinishedRun
    rows: list[dict[str, Any]]
    """Of the history."""
    data_sha256: str


def _train_as_another_rank(config: Config, directory: Path) -> None:
    """The records are those of rank 0, and the merged autopsy."""
    check_written(_train(config, directory, NoRun(), None).run)


def _train(config: Config, directory: Path, run: Run, on_step: Callable[[int, float], None] | None) -> _Trained:
    """Build and train this rank's cell; all ranks return the same rows."""
    cell = build_cell(config, directory)
    cell.ledger.preflight = [str(finding) for finding in check_cell(cell, config, trial=False)]
    rows: list[dict[str, Any]] = []
    hooks = config.headroom if config.model.compile == "off" else 0
    headroom = HeadroomCallback(Headroom(cell.model, hooks))

    def keep(reading: StepReading) -> None:
        new_tokens = over_ranks(reading, cell.trainer.new_tokens[reading.step])
        rows.append(history_row(reading, new_tokens))
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
    return _Trained(FinishedRun(watch, cell.ledger, headroom.headroom), rows, cell.data.sha256)
