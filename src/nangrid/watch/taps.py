"""Tells a listener of every backward pass and every clipping of gradients in the process."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad


class Listener(Protocol):
    """Hears of what a training loop does, without being called by it."""

    def backward(self, roots: list[Tensor], run: Callable[[], None]) -> None:
        """Run a backward pass from these roots, usually the loss."""

    def clipping(self, norm: Tensor, limit: float) -> None:
        """Note that gradients of this norm are about to be clipped to `limit`."""


_listeners: list[Listener] = []
_originals: dict[str, Any] = {}
_under_way: dict[int, list[Tensor]] = {}
"""The roots of the backward passes that are running."""


@contextmanager
def tapping(listener: Listener) -> Iterator[None]:
    """Tell the listener within the block; blocks may overlap."""
    # Both functions are looked up in their module at every call, whatever name a script has imported them by.
    if not _listeners:
        _originals.update(backward=torch.autograd.backward, clip=clip_grad._clip_grads_with_norm_)
        torch.autograd.backward, clip_grad._clip_grads_with_norm_ = _backward, _clip
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
        if not _listeners and not sys.is_finalizing():  # by then torch is half gone
            torch.autograd.backward, clip_grad._clip_grads_with_norm_ = _originals["backward"], _originals["clip"]


def _backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
    roots = [tensors] if isinstance(tensors, Tensor) else [root for root in tensors if isinstance(root, Tensor)]

    def run() -> None:
        _originals["backward"](tensors, *args, **kwargs)

    # Under a mode for torch functions, the pass calls itself again from the same roots.
    again = any(len(roots) == len(outer) and all(map(operator.is_, roots, outer)) for outer in _under_way.values())
    for listener in [] if again else list(_listeners):
        run = _heard(listener, roots, run)
    _under_way[id(roots)] = roots
    try:
        run()
    finally:
        del _under_way[id(roots)]


def _heard(listener: Listener, roots: list[Tensor], run: Callable[[], None]) -> Callable[[], None]:
    return lambda: listener.backward(roots, run)


def _clip(parameters: Any, max_norm: float, total_norm: Tensor, *args: Any, **kwargs: Any) -> None:
    for listener in _listeners:
        listener.clipping(total_norm, max_norm)
    _originals["clip"](parameters, max_norm, total_norm, *args, **kwargs)
