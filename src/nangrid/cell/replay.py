"""Can a failing step be run again on another day, as it was or under other levels?"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from nangrid.cell.build import Cell, background, build_cell
from nangrid.cell.config import Config, factors, is_how_not_which
from nangrid.integrations.optimizer_state import fitted_state
from nangrid.integrations.trainer import TrainerStep
from nangrid.records.autopsy import Autopsy
from nangrid.records.errors import InputError
from nangrid.watch.autopsy.examine import examine
from nangrid.watch.autopsy.replay import Replay, replay
from nangrid.watch.state.module_state import ModuleState, copy_buffers
from nangrid.watch.state.snapshot import Snapshot
from nangrid.watch.state.tensors import param_groups

Answer = TypeVar("Answer")

BEFORE_THE_OPTIMIZER = ("loss", "gradient", "eval_loss")


@dataclass(frozen=True)
class Counterfactual:
    """What the failing step did under other levels."""

    replay: Replay
    autopsy: Autopsy | None
    """If it failed again."""


def replay_cell(config: Config, snapshot: Snapshot) -> Autopsy:
    """The autopsy of the step, made anew from the snapshot; `reproduced` says whether the bits are the same."""

    def ask(cell: Cell, step: TrainerStep) -> Autopsy:
        return examine(step, snapshot, background(config, cell.data))

    return where_training_begins(config, ask)


def replay_under(config: Config, old: Config, snapshot: Snapshot) -> Counterfactual:
    """The step with the same batch, trainables and random states under another config.

    InputError if the two configs differ in more than how a step is computed.
    """
    check_question(config, old, snapshot)

    def ask(cell: Cell, step: TrainerStep) -> Counterfactual:
        other = _fitted(snapshot, step, keep_groups=vars(config.optim) == vars(old.optim))
        found = replay(step, other)
        autopsy = examine(step, other, background(config, cell.data)) if found.clock else None
        return Counterfactual(found, autopsy)

    return where_training_begins(config, ask)


def check_question(config: Config, old: Config, snapshot: Snapshot) -> None:
    """InputError if the step under `config` would not be the step under `old`, computed otherwise."""
    now, before = factors(config), factors(old)
    changed = {key: now[key] for key in now if now[key] != before[key]}
    if not changed:
        raise InputError("These are the levels that the cell had: name others, or none to replay it as it was.")
    for key, value in changed.items():
        if not is_how_not_which(key):
            raise InputError(f"{key}={value} asks for another run, not for this step in another way: train it instead.")
    optim = [f"{key}={value}" for key, value in changed.items() if key.split(".")[0] == "optim"]
    if optim and snapshot.clock in BEFORE_THE_OPTIMIZER:
        raise InputError(
            f"{optim[0]} cannot change this step: its {snapshot.clock} rang before the optimizer's part. "
            "What it changes in the steps before is a question for a run."
        )


def _fitted(snapshot: Snapshot, step: TrainerStep, *, keep_groups: bool) -> Snapshot:
    """The snapshot in the dtypes and with the buffers of another model of the same trainables."""
    shapes = {name: tuple(p.shape) for name, p in step.trainables.items()}
    if shapes != {name: tuple(values.shape) for name, values in snapshot.parameters.items()}:
        raise InputError("The levels asked for train other parameters than the cell did: train it instead.")
    state = fitted_state(snapshot.state, snapshot.parameters, step.trainables, step.optimizer)
    return replace(
        snapshot,
        state=state,
        groups=snapshot.groups if keep_groups else param_groups(step.optimizer),
        module_state=ModuleState(copy_buffers(step.model), snapshot.module_state.modes),
    )


class _AnsweredError(Exception):
    """Not a failure: the way out of a training loop that has not begun."""


class _Ask(TrainerCallback):
    def __init__(self, ask: Callable[[], None]) -> None:
        self.ask = ask

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The model is wrapped and the optimizer made; nothing has been drawn or trained."""
        self.ask()
        raise _AnsweredError


def where_training_begins(config: Config, ask: Callable[[Cell, TrainerStep], Answer]) -> Answer:
    """Build the cell and ask once the trainer has made its optimizer, instead of training."""
    answers: list[Answer] = []
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        cell = build_cell(config, Path(scratch))
        step = TrainerStep(cell.trainer)
        cell.trainer.add_callback(_Ask(lambda: answers.append(ask(cell, step))))
        with contextlib.suppress(_AnsweredError):
            cell.trainer.train()
    return answers[0]
