"""Replays a cell's failing step from its snapshot, as it was or under other levels."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from nangrid.cell.build import Cell, background, build_cell
from nangrid.cell.config import Config, factors, is_how_not_which
from nangrid.integrations.optimizer_state import check_shapes, fitted_state
from nangrid.integrations.trainer import TrainerStep
from nangrid.records.autopsy import Autopsy
from nangrid.records.errors import InputError
from nangrid.watch.autopsy.examine import examine
from nangrid.watch.autopsy.replay import Replay, replay, rerun
from nangrid.watch.state.module_state import ModuleState, copy_buffers
from nangrid.watch.state.snapshot import Snapshot
from nangrid.watch.state.tensors import param_groups

Answer = TypeVar("Answer")

BEFORE_THE_OPTIMIZER = ("loss", "gradient", "eval_loss")


@dataclass(frozen=True)
class Counterfactual:
    """The failing step under other levels."""

    replay: Replay
    autopsy: Autopsy | None
    """None if the step no longer fails."""


def replay_cell(config: Config, snapshot: Snapshot) -> Autopsy:
    """A new autopsy of the step, from its snapshot; `reproduced` says whether the bits are the same."""

    def ask(cell: Cell, step: TrainerStep) -> Autopsy:
        _require_same_trainables(snapshot, step)
        check_shapes(snapshot.state, step.trainables)
        with _fitting(step, snapshot):
            return examine(step, snapshot, background(config, cell.data))

    return at_train_begin(config, ask)


def replay_under(config: Config, old: Config, snapshot: Snapshot) -> Counterfactual:
    """The step under another config, with the same batch, trainables and random states.

    InputError if the configs differ in more than how a step is computed.
    """
    check_comparable(config, old, snapshot)

    def ask(cell: Cell, step: TrainerStep) -> Counterfactual:
        other = _fitted(snapshot, step, keep_groups=vars(config.optim) == vars(old.optim))
        with _fitting(step, other):
            result = replay(step, other)
            if result.clock is None:
                return Counterfactual(result, None)
            return Counterfactual(result, examine(step, other, background(config, cell.data), experiments=False))

    return at_train_begin(config, ask)


def check_comparable(config: Config, old: Config, snapshot: Snapshot) -> None:
    """InputError unless `config` computes the same step as `old` in another way."""
    now, before = factors(config), factors(old)
    changed = {key: now[key] for key in now if now[key] != before[key]}
    if not changed:
        raise InputError("The cell already has these levels: name others, or none to replay it as it was.")
    for key, value in changed.items():
        if not is_how_not_which(key):
            raise InputError(f"{key}={value} changes which step this is, not how it is computed: train it instead.")
    optim = [f"{key}={value}" for key, value in changed.items() if key.split(".")[0] == "optim"]
    if optim and snapshot.clock in BEFORE_THE_OPTIMIZER:
        raise InputError(
            f"{optim[0]} cannot change this step: its {snapshot.clock} was non-finite before the optimizer ran. "
            "To see its effect on earlier steps, train it instead."
        )


def _fitted(snapshot: Snapshot, step: TrainerStep, *, keep_groups: bool) -> Snapshot:
    """The snapshot in the dtypes and with the buffers of another model that has the same trainables."""
    _require_same_trainables(snapshot, step)
    state = fitted_state(snapshot.state, snapshot.parameters, step.trainables, step.optimizer)
    return replace(
        snapshot,
        state=state,
        groups=snapshot.groups if keep_groups else param_groups(step.optimizer),
        module_state=ModuleState(copy_buffers(step.model), snapshot.module_state.modes),
    )


def _require_same_trainables(snapshot: Snapshot, step: TrainerStep) -> None:
    shapes = {name: tuple(p.shape) for name, p in step.trainables.items()}
    if shapes != {name: tuple(values.shape) for name, values in snapshot.parameters.items()}:
        raise InputError("These levels train other parameters than the snapshot holds: train the cell instead.")


@contextlib.contextmanager
def _fitting(step: TrainerStep, snapshot: Snapshot) -> Iterator[None]:
    """InputError in place of what the block raises, if the step raises without a tracer, too."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        try:
            rerun(step, snapshot)
        except (OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as cause:  # a stranger's snapshot may hold any batch and any state
            why = str(cause).splitlines()[0][:200] if str(cause) else ""
            raise InputError(
                f"step {snapshot.step} cannot run from its snapshot ({type(cause).__name__}: {why}): give another one."
            ) from error
        raise


class _AnsweredError(Exception):
    """Leaves the training loop before its first step; not a failure."""


class _Ask(TrainerCallback):
    def __init__(self, ask: Callable[[], None]) -> None:
        self.ask = ask

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called when the model is wrapped and the optimizer exists, before anything is drawn or trained."""
        self.ask()
        raise _AnsweredError


def at_train_begin(config: Config, ask: Callable[[Cell, TrainerStep], Answer]) -> Answer:
    """Build the cell, let its trainer make the optimizer, and return the answer of `ask` instead of training."""
    answers: list[Answer] = []
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        cell = build_cell(config, Path(scratch))
        step = TrainerStep(cell.trainer)
        cell.trainer.add_callback(_Ask(lambda: answers.append(ask(cell, step))))
        with contextlib.suppress(_AnsweredError):
            cell.trainer.train()
    return answers[0]
