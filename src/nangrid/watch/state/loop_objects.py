"""Copies and restores what a training loop changes besides model and optimizer.

That is its generators, schedulers, GradScaler, Accelerator, and its small lists, dicts and tensors.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from nangrid.watch.state.module_state import SMALL

Restore = Callable[[], object]
_METRICS = "torchmetrics"
"""The package of metrics, which count what they are given."""
_CONTAINERS = (list, dict, set, deque, defaultdict, Counter, OrderedDict)


def restorers(values: Iterable[Any]) -> list[Restore]:
    """For each of these objects that a loop may change, a function that gives it the state it has now."""
    distinct = {id(value): value for value in values}
    return [restore for value in distinct.values() if (restore := restorer(value)) is not None]


def restorer(value: Any) -> Restore | None:
    """A function that gives an object the state it has now; None for one of another kind."""
    for kinds, copied in _KINDS:
        if isinstance(value, kinds):
            return copied(value)
    if type(value).__name__ == "Accelerator":
        return _accelerator(value)
    inner = getattr(value, "scheduler", None) if type(value).__name__ == "AcceleratedScheduler" else None
    return None if inner is None else _attributes(inner)


def own_objects(values: Iterable[Any], package: str) -> list[Any]:
    """Those of the objects whose class is written in a package, such as the loop's own, and the metrics among them."""
    return [
        value
        for value in values
        if not isinstance(value, type)
        and type(value).__module__.partition(".")[0] in (package, _METRICS)
        and hasattr(value, "__dict__")
    ]


def attributes(value: Any) -> list[Restore]:
    """Functions that give an object's attributes, and what is in them, the state it has now."""
    # What begins with an underscore is, in a module, torch's own.
    state = {key: v for key, v in vars(value).items() if not (isinstance(value, nn.Module) and key.startswith("_"))}
    return [lambda: vars(value).update(state), *restorers(state.values())]


def find_scaler(values: Iterable[Any]) -> torch.amp.GradScaler | None:
    """The GradScaler among these objects, or the one of an Accelerator among them; None if it is off."""
    for value in values:
        scaler = value.scaler if type(value).__name__ == "Accelerator" else value
        if isinstance(scaler, torch.amp.GradScaler) and scaler.is_enabled():
            return scaler
    return None


def _generator(generator: torch.Generator) -> Restore:
    state = generator.get_state()
    return lambda: generator.set_state(state)


def _numpy_generator(generator: np.random.Generator) -> Restore:
    state = generator.bit_generator.state
    return lambda: setattr(generator.bit_generator, "state", state)


def _legacy_generator(generator: np.random.RandomState) -> Restore:
    state = generator.get_state()
    return lambda: generator.set_state(state)


def _python_generator(generator: random.Random) -> Restore:
    state = generator.getstate()
    return lambda: generator.setstate(state)


def _attributes(value: Any) -> Restore:
    state = {k: list(v) if type(v) is list else v for k, v in vars(value).items()}
    return lambda: vars(value).update(state)


def _scaler(scaler: torch.amp.GradScaler) -> Restore | None:
    if not scaler.is_enabled():
        return None
    state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in vars(scaler).items()}
    per_optimizer = {key: dict(value) for key, value in scaler._per_optimizer_states.items()}

    def restore() -> None:
        vars(scaler).update({k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()})
        scaler._per_optimizer_states.clear()
        scaler._per_optimizer_states.update({key: dict(value) for key, value in per_optimizer.items()})

    return restore


def _accelerator(accelerator: Any) -> Restore:
    gradient_state = accelerator.gradient_state
    step, synchronises = accelerator.step, gradient_state.sync_gradients
    loaders = [loader for loader in gradient_state.dataloader_references if loader is not None]
    ends = [(loader, loader.end_of_dataloader, loader.remainder) for loader in loaders]
    scaler = _scaler(accelerator.scaler) if accelerator.scaler is not None else None

    def restore() -> None:
        accelerator.step, gradient_state.sync_gradients = step, synchronises
        for loader, end, remainder in ends:
            loader.end_of_dataloader, loader.remainder = end, remainder
        if scaler is not None:
            scaler()

    return restore


def _container(value: Any) -> Restore | None:
    if len(value) > SMALL or type(value) not in _CONTAINERS:
        return None
    content = value.copy()

    def restore() -> None:
        value.clear()
        value.extend(content) if isinstance(value, list | deque) else value.update(content)

    return restore


def _tensor(value: Tensor) -> Restore | None:
    if value.requires_grad or isinstance(value, nn.Parameter) or value.numel() > SMALL or value.is_inference():
        return None
    content = value.detach().clone()
    return lambda: value.data.copy_(content)


def _array(value: np.ndarray[Any, Any]) -> Restore | None:
    if value.size > SMALL or not value.flags.writeable:
        return None
    content = value.copy()
    return lambda: np.copyto(value, content)


_KINDS: tuple[tuple[Any, Callable[[Any], Restore | None]], ...] = (
    (Tensor, _tensor),
    (torch.Generator, _generator),
    (np.random.Generator, _numpy_generator),
    (np.random.RandomState, _legacy_generator),
    (random.Random, _python_generator),
    (torch.amp.GradScaler, _scaler),
    ((LRScheduler, ReduceLROnPlateau), _attributes),
    ((list, dict, set, deque), _container),
    (np.ndarray, _array),
)
