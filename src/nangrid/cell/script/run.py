"""Runs a user's own training function as a cell, and stops it at the horizon.

A function that returns a Trainer has it trained under the watch. A function that trains in its own loop is simply
called; a ScriptLoop observes its Watch. The arithmetic does not change: seeds and threads are set before the function
is called, and the schedule keeps its length.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, set_seed

from nangrid.cell.config import PROCESSES
from nangrid.cell.outcome import FinishedRun, check_written, finish, history_row
from nangrid.cell.ranks import rank_zero
from nangrid.cell.script.config import ScriptConfig
from nangrid.cell.script.loop import HorizonReachedError, ScriptLoop, read_ledger
from nangrid.integrations import HeadroomCallback, TrainerWatch, train_from, watch_trainer
from nangrid.records.cell import CellRecord, write_record
from nangrid.records.errors import InputError
from nangrid.records.history import write_history
from nangrid.records.start_from import find_start
from nangrid.watch import Headroom, Ledger, NonFiniteError, StepReading, preflight
from nangrid.watch.preflight import settings_of
from nangrid.watch.watch import observing_watches

SEED = 42
"""Seed before the function is called, which may set its own; transformers' default."""
SAMPLES = 1000
"""Samples of the dataset that the preflight reads."""


def run_cell(
    config: ScriptConfig,
    directory: Path,
    *,
    cell_id: str,
    grid_id: str,
    overrides: list[str],
    on_step: Callable[[int, float], None] | None = None,
) -> CellRecord:
    """Train to the horizon, to the loss clock after the onset, or to the end of the script.

    Writes the same files as nangrid.cell.run.run_cell. InputError for a function that neither returns a Trainer nor
    makes a Watch.
    """
    began = time.perf_counter()
    steps = itertools.count()

    def report(reading: StepReading) -> None:
        if on_step:
            on_step(next(steps), reading.loss)

    with rank_zero(config.levels.get(PROCESSES), partial(_run_as_another_rank, config, directory)):
        run = _run(config, directory, report)
    for reading in run.watch.inspector.finish():
        report(reading)
    readings = run.watch.inspector.clocks.readings
    if not readings:
        raise InputError(f"{config.script} took no step: give it data for at least one.")
    outcome_fields = finish(run, directory, began, config.horizon, data_sha256="")
    names: dict[str, Any] = {"cell_id": cell_id, "grid_id": grid_id, "overrides": overrides}
    record = CellRecord(**names, factors=config.factors(), **outcome_fields)
    write_history(directory, [history_row(reading, 0) for reading in readings])
    write_record(directory, record)
    return record


def _run_as_another_rank(config: ScriptConfig, directory: Path) -> None:
    """The records are those of rank 0, and the merged autopsy."""
    check_written(_run(config, directory, lambda reading: None))


def _run(config: ScriptConfig, directory: Path, report: Callable[[StepReading], None]) -> FinishedRun:
    loop = ScriptLoop(config, directory, report)
    result = _call(config, loop)
    if isinstance(result, Trainer):
        _configure(result, config, directory)
        ledger, headroom = _read_trainer(result), Headroom(result.model)
        return FinishedRun(_train(result, config, directory, headroom, report), ledger, headroom)
    if loop.watch is not None:
        return FinishedRun(loop.watch, loop.ledger, loop.headroom)
    raise InputError(
        f"{config.script} returned a {type(result).__name__} and made no nangrid.Watch: "
        "let it return an untrained transformers.Trainer, or train in a loop with a Watch."
    )


def _call(config: ScriptConfig, loop: ScriptLoop) -> Any:
    """Result of the function; one that trains in its own loop has trained when it returns."""
    # the script's own tracker would show every cell of the search as one of the user's runs
    os.environ["WANDB_MODE"] = "disabled"
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    set_seed(SEED + config.repeat)
    function = _function(config)
    # a Watch made inside the function looks its observer up in nangrid.watch.watch, since none can be passed to it
    with observing_watches(loop), _shifted_seeds(config.repeat), suppress(NonFiniteError, HorizonReachedError):
        return function(dict(config.levels))


@contextmanager
def _shifted_seeds(by: int) -> Iterator[None]:
    """Add `by` to every seed that is set inside the block."""
    # a script that sets its own seed would otherwise repeat the very same run for each seed of the search
    with ExitStack() as stack:
        for owner, name in ((torch, "manual_seed"), (random, "seed"), (np.random, "seed")):
            original = getattr(owner, name)
            setattr(owner, name, _shifted(original, by))
            stack.callback(setattr, owner, name, original)
        yield


def _shifted(original: Callable[..., Any], by: int) -> Callable[..., Any]:
    def seed(value: Any = None, *rest: Any) -> Any:
        return original(value + by if isinstance(value, int) else value, *rest)

    return seed


def _train(
    trainer: Trainer, config: ScriptConfig, directory: Path, headroom: Headroom, report: Callable[[StepReading], None]
) -> TrainerWatch:
    trainer.add_callback(HeadroomCallback(headroom))
    start = None if config.start_from is None else find_start(config.start_from)
    trainer.add_callback(_Horizon(config.horizon + (start.step if start else 0)))
    watch = watch_trainer(trainer, directory, on_step=report)
    if start is None:
        trainer.train()
    else:
        train_from(trainer, start)
    return watch


class _Horizon(TrainerCallback):
    """Stops the run at the horizon, however long its schedule is."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called when the number of the next step has been set."""
        if state.global_step >= self.step:
            control.should_training_stop = True


def _configure(trainer: Trainer, config: ScriptConfig, directory: Path) -> None:
    """Write nothing outside of the cell's directory, save no checkpoints, shift the seeds."""
    arguments = trainer.args
    arguments.output_dir = str(directory / "trainer")
    arguments.save_strategy = type(arguments.save_strategy)("no")
    if config.repeat:
        arguments.seed += config.repeat
        arguments.data_seed = None if arguments.data_seed is None else arguments.data_seed + config.repeat
        set_seed(arguments.seed)


def _function(config: ScriptConfig) -> Callable[[dict[str, Any]], Any]:
    module = sys.modules.get("__mp_main__") if config.module == "__main__" else importlib.import_module(config.module)
    if module is None or getattr(module, "__file__", None) != config.file:
        spec = importlib.util.spec_from_file_location("nangrid_script", config.file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    function: Callable[[dict[str, Any]], Any] = getattr(module, config.function)
    return function


def _read_trainer(trainer: Trainer) -> Ledger:
    """The ledger, preflight findings included."""
    model, arguments = trainer.model, trainer.args
    settings = settings_of(arguments)
    samples = _samples(trainer.train_dataset)
    findings = preflight(model, samples, settings, trial=False) if samples else []
    return read_ledger(model, settings.autocast, arguments.device.type, findings)


def _samples(dataset: Any) -> list[Mapping[str, Any]]:
    """The first samples if they are tokenised; streams, and data that only a collator tokenises, are skipped."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return []
    first = [dataset[i] for i in range(min(len(dataset), SAMPLES))]
    return first if first and all(isinstance(s, Mapping) and "input_ids" in s for s in first) else []
