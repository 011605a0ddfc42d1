"""What happens when a user's own run is a cell? Its trainer is built as ever, watched, and stopped at the horizon.

A loop of the user's own is let run as it is, and its Watch told where it is. Nothing of the arithmetic is touched:
seeds and threads are set before the function is called, and the run's own schedule keeps its length.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, set_seed

from nangrid.cell.environment import read_environment
from nangrid.cell.outcome import history_row, keep_headroom, outcome
from nangrid.cell.script.config import ScriptConfig
from nangrid.cell.script.loop import OwnLoop, SeenEnoughError, read_ledger
from nangrid.integrations import HeadroomCallback, TrainerWatch, train_from, watch_trainer
from nangrid.records.cell import CellRecord, write_record
from nangrid.records.errors import InputError
from nangrid.records.history import write_history
from nangrid.records.start_from import find_start
from nangrid.watch import Headroom, Ledger, NonFiniteError, StepReading, Watch, preflight
from nangrid.watch.ledger import read_optimizer
from nangrid.watch.preflight import settings_of
from nangrid.watch.watch import observing_watches

SEED = 42
"""Before the function is called, which may set its own: transformers' default."""
SAMPLES = 1000
"""Of the dataset, for the preflight."""


def run_cell(
    config: ScriptConfig,
    directory: Path,
    *,
    cell_id: str,
    grid_id: str,
    overrides: list[str],
    on_step: Callable[[int, float], None] | None = None,
) -> CellRecord:
    """Train to the horizon, to the loss clock after the onset, or to where the script itself ends."""
    began = time.perf_counter()

    steps = itertools.count()

    def tell(reading: StepReading) -> None:
        if on_step:
            on_step(next(steps), reading.loss)

    loop = OwnLoop(config, directory, tell)
    made = _call(config, loop)
    if isinstance(made, Trainer):
        _settle(made, config, directory)
        ledger, headroom = _read(made), Headroom(made.model)
        watch: TrainerWatch | Watch = _train(made, config, directory, headroom, tell)
    elif loop.watch is not None:
        watch, ledger, headroom = loop.watch, loop.ledger, loop.headroom
    else:
        raise InputError(
            f"{config.script} returned a {type(made).__name__} and no nangrid.Watch was made: "
            "let it return the transformers.Trainer, not trained, or train in a loop with a Watch."
        )
    for reading in watch.inspector.finish():
        tell(reading)
    readings = watch.inspector.clocks.readings
    if not readings:
        raise InputError(f"{config.script} took no step: give it data for one.")
    keep_headroom(directory, headroom, watch.background.texts)
    read_optimizer(watch.inspector.step.optimizer, ledger)
    names: dict[str, Any] = {"cell_id": cell_id, "grid_id": grid_id, "overrides": overrides}
    environment = read_environment(ledger.arithmetic["device"], "")
    record = CellRecord(**names, factors=config.factors(), **outcome(watch, began, config.horizon, ledger, environment))
    write_history(directory, [history_row(reading, 0) for reading in readings])
    write_record(directory, record)
    return record


def _call(config: ScriptConfig, loop: OwnLoop) -> Any:
    """What the function returns. If it trains in a loop of its own, it has done so."""
    # what a script reports to is its own run's affair, not that of the many that are made of it
    os.environ["WANDB_MODE"] = "disabled"
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    set_seed(SEED + config.repeat)
    function = _function(config)
    with observing_watches(loop), _seeds_moved(config.repeat), suppress(NonFiniteError, SeenEnoughError):
        return function(dict(config.levels))


@contextmanager
def _seeds_moved(by: int) -> Iterator[None]:
    """Seeds that are set inside are that much larger: repeats of a script that sets its own are no copies."""
    with ExitStack() as stack:
        for owner, name in ((torch, "manual_seed"), (random, "seed"), (np.random, "seed")):
            original = getattr(owner, name)
            setattr(owner, name, _moved(original, by))
            stack.callback(setattr, owner, name, original)
        yield


def _moved(original: Callable[..., Any], by: int) -> Callable[..., Any]:
    def seed(value: Any = None, *rest: Any) -> Any:
        return original(value + by if isinstance(value, int) else value, *rest)

    return seed


def _train(
    trainer: Trainer, config: ScriptConfig, directory: Path, headroom: Headroom, tell: Callable[[StepReading], None]
) -> TrainerWatch:
    trainer.add_callback(HeadroomCallback(headroom))
    start = None if config.start_from is None else find_start(config.start_from)
    trainer.add_callback(_Horizon(config.horizon + (start.step if start else 0)))
    watch = watch_trainer(trainer, directory, on_step=tell)
    if start is None:
        trainer.train()
    else:
        train_from(trainer, start)
    return watch


class _Horizon(TrainerCallback):
    """Stops the run there, whatever length its schedule has."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The number of the next step has been set."""
        if state.global_step >= self.step:
            control.should_training_stop = True


def _settle(trainer: Trainer, config: ScriptConfig, directory: Path) -> None:
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


def _read(trainer: Trainer) -> Ledger:
    """The ledger, preflight included."""
    model, arguments = trainer.model, trainer.args
    autocast = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    samples = _samples(trainer.train_dataset)
    findings = preflight(model, samples, settings_of(arguments), trial=False) if samples else []
    return read_ledger(model, autocast, arguments.device.type, findings)


def _samples(dataset: Any) -> list[Mapping[str, Any]]:
    """The first ones, if they are tokenised; what a collator or a stream makes of others is not looked at."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return []
    first = [dataset[i] for i in range(min(len(dataset), SAMPLES))]
    return first if first and all(isinstance(s, Mapping) and "input_ids" in s for s in first) else []
