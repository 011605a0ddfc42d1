"""Copies and restores what a step may change in a model besides its trainables.

That is its buffers, the train or eval mode of its modules, and frozen parameters that its own code writes to, such as
a teacher that follows the student. Python attributes, such as a counter, are not covered.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

SMALL = 4096
"""Elements up to which a buffer is copied at every step: torch's version counter misses writes through `.data`."""


@dataclass
class ModuleState:
    """Buffers, modes and rewritten frozen parameters of a model, by name."""

    buffers: dict[str, Tensor] = field(default_factory=dict)
    modes: dict[str, bool] = field(default_factory=dict)
    """Whether each module is in training mode; a module that is not listed has the mode of the whole model."""
    frozen: dict[str, Tensor] = field(default_factory=dict)
    """Parameters without a gradient that were written to."""


class ModuleStateRecorder:
    """Copies a model's module state before every step, and only what has changed."""

    def __init__(self, model: nn.Module) -> None:
        # Walking a model of hundreds of modules at every step would cost as much as a copy of its adapters.
        self._modules = list(model.named_modules())
        self._parameters = [(name, p, p._version) for name, p in model.named_parameters() if not p.requires_grad]
        self._versions: dict[str, tuple[int, int]] = {}
        """Identity and version of each buffer when it was last copied."""
        self.copied = ModuleState()

    def copy(self) -> None:
        """Copy buffers and rewritten frozen parameters; to be called before each step."""
        copied = self.copied
        copied.buffers = {name: self._buffer(name, buffer) for name, buffer in _named(self._modules)}
        for name, parameter in self._rewritten():
            copied.frozen[name] = _copied(parameter, copied.frozen.get(name))

    def now(self) -> ModuleState:
        """The last copy, with the modes that the modules are in now.

        A frozen parameter that was first written to in this step has the value that the step left.
        """
        modes = {name: module.training for name, module in self._modules}
        late = {name: p.detach().clone() for name, p in self._rewritten() if name not in self.copied.frozen}
        return ModuleState(self.copied.buffers, modes, self.copied.frozen | late)

    def _rewritten(self) -> Iterator[tuple[str, Tensor]]:
        # A parameter that was unfrozen since belongs to the optimizer and is copied with the trainables.
        return ((name, p) for name, p, version in self._parameters if p._version != version and not p.requires_grad)

    def _buffer(self, name: str, live: Tensor) -> Tensor:
        copied, version = self.copied.buffers.get(name), (id(live), live._version)
        if copied is None or self._versions.get(name) != version or live.numel() <= SMALL:
            self._versions[name] = version
            return _copied(live, copied)
        return copied


def _copied(live: Tensor, into: Tensor | None) -> Tensor:
    if into is not None and into.shape == live.shape and into.dtype == live.dtype:
        return into.copy_(live.detach())
    return live.detach().clone()


def copy_buffers(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's buffers, by name."""
    return {name: buffer.detach().clone() for name, buffer in _named(model.named_modules())}


@torch.no_grad()
def load_module_state(model: nn.Module, state: ModuleState, training: bool) -> None:
    """Write `state` into the model; modules without a recorded mode get `training`.

    Buffers that were created or resized since then keep their values: such a cache belongs to Python attributes of the
    model, which are not restored.
    """
    for name, module in model.named_modules():
        module.training = state.modes.get(name, training)
        for key, buffer in module._buffers.items():
            saved = state.buffers.get(_join(name, key))
            if buffer is not None and saved is not None and saved.shape == buffer.shape:
                module._buffers[key] = _written(buffer, saved)
    parameters = dict(model.named_parameters())
    for name, values in state.frozen.items():
        parameters[name].copy_(values)


@contextmanager
def preserving(model: nn.Module, frozen: Collection[str] = ()) -> Iterator[None]:
    """Restore the model's buffers, its modes and these frozen parameters at the end of the block."""
    modes = {name: module.training for name, module in model.named_modules()}
    values = {name: p.detach().clone() for name, p in model.named_parameters() if name in frozen}
    before = ModuleState(copy_buffers(model), modes, values)
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, live in buffers:
            module._buffers.clear()
            module._buffers.update(live)
        load_module_state(model, before, model.training)


@contextmanager
def preserving_gradients(trainables: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Start the block without gradients and restore the present ones, the same tensors, at its end."""
    before = {name: parameter.grad for name, parameter in trainables.items()}
    for parameter in trainables.values():
        parameter.grad = None
    try:
        yield
    finally:
        for name, parameter in trainables.items():
            parameter.grad = before.get(name)


def _written(buffer: Tensor, value: Tensor) -> Tensor:
    """The buffer with that value; a new tensor if its elements share their memory (expand).

    A sparse buffer, such as a graph's adjacency matrix, is taken to be a constant.
    """
    if buffer.layout is not torch.strided:
        return buffer
    if buffer.shape == value.shape and not torch.equal(buffer, value.to(buffer.device)):
        return value.to(buffer.device, copy=True) if 0 in buffer.stride() else buffer.copy_(value)
    return buffer


def _named(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, Tensor]]:
    for name, module in modules:
        for key, buffer in module._buffers.items():
            if buffer is not None:
                yield _join(name, key), buffer


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name
