"""Checks the values in a Trainer's checkpoint before transformers and torch rely on them; it may be a stranger's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from nangrid.integrations.torch_file import load_pickle
from nangrid.watch.state.random_state import check_random_states

_KINDS = {"log_history": list, "stateful_callbacks": dict, "train_batch_size": int | None}


def check_checkpoint(folder: Path) -> None:
    """Raise what Python and torch raise for a trainer's state or a random state of other kinds of values."""
    state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
    for name, kind in _KINDS.items():
        if not isinstance(getattr(state, name), kind):
            raise ValueError(f"{name} is {getattr(state, name)!r:.60}")
    for path in folder.glob("rng_state*.pth"):
        states = load_pickle(path)
        check_random_states({"python": states["python"], "numpy": states["numpy"], "torch": states["cpu"]})


def check_schedule(state: Mapping[str, Any]) -> None:
    """ValueError unless the numbers of a scheduler's state are numbers."""
    check_numbers([*state.get("base_lrs", ()), *state.get("_last_lr", ()), state["last_epoch"]])


def check_numbers(values: Iterable[object]) -> None:
    """ValueError for a value that is no number."""
    for value in values:
        if not isinstance(value, int | float):
            raise ValueError(f"{value!r:.60} stands in the place of a number")
