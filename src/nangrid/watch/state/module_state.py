"""What of a model, beside its trainables, can differ from one step to the next, and how is it put back?

Its buffers, the modes of its modules, and frozen parameters that its own code writes to (a teacher that follows the
student). Attributes of Python's own, such as a counter, are not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

SMALL = 4096
"""Elements up to which a buffer is copied at every step: what is written through `.data` is not counted by torch."""


@dataclass
class ModuleState:
    """Of a model, by name."""

    buffers: dict[str, Tensor] = field(default_factory=dict)
    modes: dict[str, bool] = field(default_factory=dict)
    """Whether each module trains; a module that is not named is in the mode of the whole."""
    frozen: dict[str, Tensor] = field(default_factory=dict)
    """Parameters without a gradient that were written to."""


class ModuleStateRecorder:
    """Copies a model's module state step by step, and only what has changed."""

    def __init__(self, model: nn.Module) -> None:
        # walking a model of hundreds of modules at every step would cost as much as a copy of its adapters
        self._modules = list(model.named_modules())
        self._parameters = [(name, p, p._version) for name, p in model.named_parameters() if not p.requires_grad]
        self._seen: dict[str, tuple[int, int]] = {}
        self.copied = ModuleState()

    def copy(self) -> None:
        """Before a step."""
        kept = self.copied
        kept.buffers = {name: self._buffer(name, buffer) for name, buffer in _named(self._modules)}
        for name, parameter in self._moved():
            kept.frozen[name] = _copied(parameter, kept.frozen.get(name))

    def now(self) -> ModuleState:
        """What was copied, in the modes that the step ran in.

        A frozen parameter that was first written to in this step is as the step left it.
        """
        modes = {name: module.training for name, module in self._modules}
        late = {name: p.detach().clone() for name, p in self._moved() if name not in self.copied.frozen}
        return ModuleState(self.copied.buffers, modes, self.copied.frozen | late)

    def _moved(self) -> Iterator[tuple[str, Tensor]]:
        # what was unfrozen since is the optimizer's to change, and is kept with the trainables
        return ((name, p) for name, p, version in self._parameters if p._version != version and not p.requires_grad)

    def _buffer(self, name: str, live: Tensor) -> Tensor:
        kept, seen = self.copied.buffers.get(name), (id(live), live._version)
        if kept is None or self._seen.get(name) != seen or live.numel() <= SMALL:
            self._seen[name] = seen
            return _copied(live, kept)
        return kept


def _copied(live: Tensor, into: Tensor | None) -> Tensor:
    if into is not None and into.shape == live.shape and into.dtype == live.dtype:
        return into.copy_(live.detach())
    return live.detach().clone()


def of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of its buffers."""
    return {name: buffer.detach().clone() for name, buffer in _named(model.named_modules())}


@torch.no_grad()
def put(model: nn.Module, state: ModuleState, training: bool) -> None:
    """Bring a model into this state.

    Buffers that were made, or grew, since then are left: such a cache goes with what Python code knows of it.
    """
    for name, module in model.named_modules():
        module.training = state.modes.get(name, training)
        for own, buffer in module._buffers.items():
            kept = state.buffers.get(_join(name, own))
            if buffer is not None and kept is not None and kept.shape == buffer.shape:
                module._buffers[own] = _written(buffer, kept)
    parameters = dict(model.named_parameters())
    for name, values in state.frozen.items():
        parameters[name].copy_(values)


@contextmanager
def undisturbed(model: nn.Module, frozen: Mapping[str, Tensor]) -> Iterator[None]:
    """Put back the very buffers, modes and those frozen parameters at the end of the block."""
    modes = {name: module.training for name, module in model.named_modules()}
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if name in frozen}
    before = ModuleState(of(model), modes, kept)
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, live in buffers:
            module._buffers.clear()
            module._buffers.update(live)
        put(model, before, model.training)


def _written(buffer: Tensor, value: Tensor) -> Tensor:
    """The buffer with that value; another tensor where its elements share their memory (expand).

    A sparse one, such as a graph's adjacency, is taken to be a constant.
    """
    if buffer.layout is not torch.strided:
        return buffer
    if buffer.shape == value.shape and not torch.equal(buffer, value.to(buffer.device)):
        return value.to(buffer.device, copy=True) if 0 in buffer.stride() else buffer.copy_(value)
    return buffer


def _named(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, Tensor]]:
    for name, module in modules:
        for own, buffer in module._buffers.items():
            if buffer is not None:
                yield _join(name, own), buffer


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name
