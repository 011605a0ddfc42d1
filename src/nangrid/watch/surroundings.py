"""What of a model, beside its trainables, can differ from one step to the next, and how is it put back?

Its buffers, the modes of its modules, and frozen parameters that its own code writes to (a teacher that follows the
student). Attributes of Python's own, such as a counter, are not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

SMALL = 4096
"""Elements up to which a buffer is copied at every step: what is written through `.data` is not counted by torch."""


@dataclass
class Surroundings:
    """Of a model, by name."""

    buffers: dict[str, Tensor | None] = field(default_factory=dict)
    modes: dict[str, bool] = field(default_factory=dict)
    """Whether each module trains; a module that is not named is in the mode of the whole."""
    frozen: dict[str, Tensor] = field(default_factory=dict)
    """Parameters without a gradient that were written to."""


class Surveyor:
    """Copies a model's surroundings step by step, and only what has changed."""

    def __init__(self, model: nn.Module) -> None:
        # walking a model of hundreds of modules at every step would cost as much as a copy of its adapters
        self._modules = list(model.named_modules())
        self._parameters = [(name, p, p._version) for name, p in model.named_parameters() if not p.requires_grad]
        self._seen: dict[str, tuple[int, int]] = {}
        self.copied = Surroundings()

    def copy(self) -> None:
        """Before a step."""
        kept = self.copied
        live = {_join(name, own): b for name, module in self._modules for own, b in module._buffers.items()}
        kept.buffers = {name: self._buffer(name, buffer) for name, buffer in live.items()}
        for name, parameter in self._moved():
            kept.frozen[name] = _copied(parameter, kept.frozen.get(name))

    def now(self) -> Surroundings:
        """What was copied, in the modes that the step ran in.

        A frozen parameter that was first written to in this step is as the step left it.
        """
        modes = {name: module.training for name, module in self._modules}
        late = {name: p.detach().clone() for name, p in self._moved() if name not in self.copied.frozen}
        return Surroundings(self.copied.buffers, modes, self.copied.frozen | late)

    def _moved(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, p) for name, p, version in self._parameters if p._version != version)

    def _buffer(self, name: str, live: Tensor | None) -> Tensor | None:
        if live is None:
            return None
        kept, seen = self.copied.buffers.get(name), (id(live), live._version)
        if kept is None or self._seen.get(name) != seen or live.numel() <= SMALL:
            self._seen[name] = seen
            return _copied(live, kept)
        return kept


def _copied(live: Tensor, into: Tensor | None) -> Tensor:
    if into is not None and into.shape == live.shape and into.dtype == live.dtype:
        return into.copy_(live.detach())
    return live.detach().clone()


def of(model: nn.Module) -> dict[str, Tensor | None]:
    """A copy of its buffers."""
    named = model.named_modules()
    return {_join(n, own): b if b is None else b.detach().clone() for n, m in named for own, b in m._buffers.items()}


@torch.no_grad()
def put(model: nn.Module, state: Surroundings, training: bool) -> None:
    """Bring a model into these surroundings; buffers that they lack are taken away."""
    for name, module in model.named_modules():
        module.training = state.modes.get(name, training)
        for own in list(module._buffers):
            full = _join(name, own)
            if full in state.buffers:
                module._buffers[own] = _written(module._buffers[own], state.buffers[full])
            else:
                del module._buffers[own]
    parameters = dict(model.named_parameters())
    for name, values in state.frozen.items():
        parameters[name].copy_(values)


@contextmanager
def undisturbed(model: nn.Module, frozen: Mapping[str, Tensor]) -> Iterator[None]:
    """Put back the very buffers, modes and those frozen parameters at the end of the block."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    values = [{own: b if b is None else b.detach().clone() for own, b in named.items()} for _, named in buffers]
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if name in frozen}
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for (module, named), own_values in zip(buffers, values, strict=True):
                module._buffers.clear()
                module._buffers.update({own: _written(b, own_values[own]) for own, b in named.items()})
            parameters = dict(model.named_parameters())
            for name, value in kept.items():
                parameters[name].copy_(value)


def _written(buffer: Tensor | None, value: Tensor | None) -> Tensor | None:
    """The buffer with that value; another tensor where it has another shape, or its elements share their memory."""
    if buffer is None or value is None:
        return value
    if buffer.shape == value.shape and buffer.dtype == value.dtype:
        if torch.equal(buffer, value):
            return buffer
        if 0 not in buffer.stride():
            return buffer.copy_(value)
    return value.to(buffer.device, copy=True)


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name
