"""Where in the model, and on which source line, does an operation stand?

Forward operations are placed by the module call under way in their thread. Backward ones are placed by their
autograd node, and on the line of a hook or of a custom function's backward where one is under way: anomaly mode
asks `torch.fx.traceback.format_stack` for a note when a node is made, in whatever thread, and keeps it on the
node. While places are kept that note is ours, so it survives backward in another thread and recomputation in
checkpointed regions, where sequence numbers collide.
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
_HERE = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Place:
    """`module` is a dotted name, empty outside of the model; `source` is `file.py:123`."""

    module: str = ""
    source: str = ""
    node: str = ""
    """The autograd node of a backward operation."""


class Places(threading.local):
    """The module calls under way, per thread."""

    def __init__(self, model: nn.Module) -> None:
        self.names = module_names(model)
        self.stack: list[str] = []

    def here(self) -> Place:
        """The place of the operation that is being dispatched now."""
        node = torch._C._current_autograd_node()
        if node is not None and not self.stack:
            noted = _noted(node)
            return replace(noted, source=_within_backward(sys._getframe(1)) or noted.source)
        return Place(self.stack[-1] if self.stack else "", source_line(sys._getframe(1)))

    def note(self) -> list[str]:
        """What anomaly mode keeps on a new autograd node."""
        module = self.stack[-1] if self.stack else ""
        return [f"{module}\t{source_line(sys._getframe(1))}"]

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook."""
        self.stack.append(self.names.get(module, type(module).__name__))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook; also called when the call raises, as early-stopped recomputation does."""
        if self.stack:
            self.stack.pop()


def _noted(node: Any) -> Place:
    for note in node.metadata.get("traceback_", []):
        module, tab, source = note.partition("\t")
        if tab:
            return Place(module, source, node.name())
    return Place(node=node.name())


def _within_backward(frame: FrameType | None) -> str:
    """The line of a custom function's backward or of a hook; empty where the engine itself is at work."""
    inner = frame
    while inner is not None and not inner.f_code.co_filename.startswith(_AUTOGRAD):
        inner = inner.f_back
    return source_line(frame, inner)


def source_line(frame: FrameType | None, outermost: FrameType | None = None) -> str:
    """`file.py:123` of the innermost frame that is neither torch's (but its optimizers) nor ours."""
    while frame is not outermost and frame is not None:
        path = frame.f_code.co_filename
        torchs = path.startswith(_TORCH) and not path.startswith(_OPTIM)
        if not torchs and not path.startswith((_HERE, "<")):
            return f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@contextmanager
def keep_places(model: nn.Module) -> Iterator[Places]:
    """Know the place of every operation until the end of the block."""
    places = Places(model)
    original = torch.fx.traceback.format_stack
    hooks = [
        module_hooks.register_module_forward_pre_hook(places.enter),
        module_hooks.register_module_forward_hook(places.leave, always_call=True),
    ]
    torch.fx.traceback.format_stack = places.note
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Anomaly Detection has been enabled")
            with torch.autograd.set_detect_anomaly(True, check_nan=False):
                yield places
    finally:
        torch.fx.traceback.format_stack = original
        for hook in hooks:
            hook.remove()
