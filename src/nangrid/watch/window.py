"""Holds the iterations of a loop that led to one optimizer step, with all that is needed to run them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nangrid.watch.autopsy.replay import NotRepeatableError
from nangrid.watch.state.loop_objects import Restore, attributes, own_objects, restorers
from nangrid.watch.state.random_state import random_states

COPIED = 1 << 20
"""Elements up to which a tensor of the batch is copied, in case the loop changes it."""
_DEVICES = ("cpu", "cuda")


class Repeatable(Protocol):
    """What a training loop does with one batch."""

    package: str
    """Objects whose class is written in it are the loop's own: their attributes are restored."""

    @property
    def objects(self) -> Sequence[Any]:
        """What the loop changes besides model and optimizer."""

    def run(self, batch: Any) -> None:
        """Do it again, for the same batch or a part of it."""


@dataclass
class Taken:
    """An optimizer step of the window."""

    optimizer: torch.optim.Optimizer | None
    """None for one that a GradScaler skipped."""
    backwards: int
    """Backward passes before it."""
    reduced: dict[str, Tensor] = field(default_factory=dict)
    """Gradients of all ranks together that it read, if another optimizer of the loop follows."""


class Iteration:
    """One round of the loop: the batch, and the loop's variables and objects from before it."""

    def __init__(self, number: int, batch: Any, body: Repeatable | None, modules: Sequence[nn.Module] = ()) -> None:
        """`body`: None if it was not found. `modules`: those of the model whose Python attributes may change."""
        self.number = number
        """Counts all rounds that the watch has seen."""
        self.body = body
        self.objects = list(body.objects) if body else []
        self._own = [*own_objects(self.objects, body.package if body else ""), *modules]
        self.restorers = self._restorers()
        self.rng = random_states()
        self._contents = [_Content(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor | np.ndarray)]
        self._autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES]

    def _restorers(self) -> list[Restore]:
        return [*restorers(self.objects), *(restore for value in self._own for restore in attributes(value))]

    def reachable(self) -> Iterator[Any]:
        """The loop's objects, and those that its own objects have as attributes."""
        yield from self.objects
        for value in self._own:
            yield from vars(value).values()

    def restore(self) -> None:
        """Give the loop's objects and the batch the state from before the iteration."""
        for restore in self.restorers:
            restore()
        for content in self._contents:
            content.restore()

    def restorers_now(self) -> list[Restore]:
        """Functions that give the loop's objects and the batch the state that they have now."""
        changed = [content.tensor for content in self._contents if content.changed]
        return [*self._restorers(), *(_Content(tensor, always=True).restore for tensor in changed)]

    def run(self, batch: Any) -> None:
        """Run the loop's body again, for its batch or a part of it."""
        if self.body is None:
            raise NotRepeatableError(
                "the source of the loop's body was not found, or it takes its batches through something other than "
                "enumerate, islice or a progress bar."
            )
        with self._as_outside():
            self.body.run(batch)

    @contextmanager
    def _as_outside(self) -> Iterator[None]:
        """Gradients and autocast as they were where the loop began, not as they are where the step failed."""
        (cpu, cpu_dtype), (cuda, cuda_dtype) = self._autocast
        with (
            torch.enable_grad(),
            torch.autocast("cpu", cpu_dtype, enabled=cpu),
            torch.autocast("cuda", cuda_dtype, enabled=cuda and torch.cuda.is_available()),
        ):
            yield


class _Content:
    """What a tensor or array of the batch holds."""

    def __init__(self, tensor: Any, always: bool = False) -> None:
        self.tensor = tensor
        small = (tensor.numel() if isinstance(tensor, Tensor) else tensor.size) <= COPIED
        plain = not isinstance(tensor, Tensor) or (tensor.layout is torch.strided and not tensor.is_inference())
        self._copy = _copied(tensor) if plain and (small or always) else None
        self._version = _version(tensor)

    @property
    def changed(self) -> bool:
        """Whether the loop has written to it since; unknown, and taken for no, of a large array."""
        if isinstance(self.tensor, Tensor):
            return _version(self.tensor) != self._version
        return self._copy is not None and not np.array_equal(self.tensor, self._copy)

    def restore(self) -> None:
        """Write the content back; NotRepeatableError if it has changed and was too large to be copied."""
        if not self.changed:
            return
        if self._copy is None:
            raise NotRepeatableError("the loop changed its batch in place, and the batch is too large to be copied.")
        if isinstance(self.tensor, Tensor):
            self.tensor.data.copy_(self._copy)
        else:
            np.copyto(self.tensor, self._copy)


def _copied(tensor: Any) -> Any:
    return tensor.detach().clone() if isinstance(tensor, Tensor) else tensor.copy()


def _version(tensor: Any) -> int:
    return tensor._version if isinstance(tensor, Tensor) and not tensor.is_inference() else 0


@dataclass
class Window:
    """The iterations since the last optimizer step."""

    iterations: list[Iteration] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    backwards: int = 0
    losses: list[Tensor] = field(default_factory=list)
    """Roots of the backward passes that no optimizer step has followed yet."""
    carried: dict[str, Tensor] | None = None
    """Gradients that were there before the first backward pass; None before it."""
    stepped: bool = False

    def clear(self) -> None:
        """Begin anew: nothing of the iterations so far is left in the gradients."""
        vars(self).update(vars(Window()))
