"""Finds the module and the source line of the operation that is running.

A forward operation belongs to the innermost module call of its thread. A backward operation belongs to its autograd
node, or to the line of a hook or of a custom function's backward if one is running.

Where a node was created is known from anomaly mode: it asks `torch.fx.traceback.format_stack` for a note and stores it
on the node. While places are kept, that function returns our note. Notes survive a backward pass in another thread and
recomputation in checkpointed regions, where the sequence numbers of autograd collide.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.fx.traceback
from torch import nn
from torch.nn.modules import module as module_hooks

from nangrid.watch.state.tensors import module_names

_TORCH = str(Path(torch.__file__).parent)
_OPTIM = str(Path(_TORCH) / "optim")
_AUTOGRAD = str(Path(_TORCH) / "autograd")
_ENGINE = "_engine_run_backward"
"""The function of torch that starts a backward pass."""
_FORWARD = (str(Path(_TORCH) / "utils" / "checkpoint.py"), str(Path(_TORCH) / "nn" / "modules" / "module.py"))
"""Files whose code runs a forward pass when a backward pass calls it."""
_HERE = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Place:
    """Module and source line of an operation: a dotted name, empty outside the model, and `file.py:123`."""

    module: str = ""
    source: str = ""
    node: str = ""
    """The autograd node of a backward operation."""


class Places(threading.local):
    """The stack of running module calls, per thread."""

    def __init__(self, model: nn.Module) -> None:
        self.names = module_names(model)
        self.stack: list[str] = []

    def here(self) -> Place:
        """The place of the operation that is being dispatched."""
        node = torch._C._current_autograd_node()
        # Recomputation in a checkpointed region runs modules within backward: then the module call is the place.
        if node is not None and not self.stack:
            created, frame = _noted(node), sys._getframe(1)
            if recomputes(frame):
                return replace(created, source=source_line(frame), node="")
            return replace(created, source=_within_backward(frame) or created.source)
        return Place(self.stack[-1] if self.stack else "", source_line(sys._getframe(1)))

    def note(self) -> list[str]:
        """The note that anomaly mode stores on a new autograd node."""
        module = self.stack[-1] if self.stack else ""
        return [f"{module}\t{source_line(sys._getframe(1))}"]

    def enter(self, module: nn.Module, args: Any) -> None:
        """Push the module; a forward pre-hook."""
        self.stack.append(self.names.get(module, type(module).__name__))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Pop the module; a forward hook, also called if the call raises, as early-stopped recomputation does."""
        if self.stack:
            self.stack.pop()


def _noted(node: Any) -> Place:
    for note in node.metadata.get("traceback_", []):
        module, tab, source = note.partition("\t")  # a note without a tab is torch's own stack trace
        if tab:
            return Place(module, source, node.name())
    return Place(node=node.name())


def _within_backward(frame: FrameType | None) -> str:
    """The line of a running hook or custom backward; empty if autograd's engine runs its own operation."""
    inner = frame
    while inner is not None and not inner.f_code.co_filename.startswith(_AUTOGRAD):
        inner = inner.f_back
    return source_line(frame, inner)


def recomputes(frame: FrameType | None) -> bool:
    """Whether this code, run by a backward pass, computes a part of the forward pass again: gradient checkpointing."""
    while frame is not None and frame.f_code.co_name != _ENGINE:
        if frame.f_code.co_filename in _FORWARD:
            return True
        frame = frame.f_back
    return False


def source_line(frame: FrameType | None, outermost: FrameType | None = None) -> str:
    """`file.py:123` of the innermost frame outside nangrid and torch; torch's optimizers count as outside."""
    while frame is not outermost and frame is not None:
        path = frame.f_code.co_filename
        in_torch = path.startswith(_TORCH) and not path.startswith(_OPTIM)
        if not in_torch and not path.startswith((_HERE, "<")):
            return f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@contextmanager
def keep_places(model: nn.Module) -> Iterator[Places]:
    """Track the place of every operation until the end of the block."""
    places = Places(model)
    # check_nan=False: only the notes of anomaly mode are wanted, not its own checks.
    original = torch.fx.traceback.format_stack
    hooks = [
        module_hooks.register_module_forward_pre_hook(places.enter),
        module_hooks.register_module_forward_hook(places.leave, always_call=True),
    ]
    torch.fx.traceback.format_stack = places.note
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Anomaly Detection has been enabled")
            # A replay leaves a backward pass in which an optimizer steps, and that is no error of the user's.
            warnings.filterwarnings("ignore", message="Error detected in")
            with torch.autograd.set_detect_anomaly(True, check_nan=False):
                yield places
    finally:
        torch.fx.traceback.format_stack = original
        for hook in hooks:
            hook.remove()
