"""Records how close the outputs of each module come to the largest number of each float dtype.

At step 0 and every n-th step it records the largest activation and the largest gradient of every module's output, with
the token at that position. headroom = log2(largest number of a dtype / largest observed), in bits; below 0 the value
would overflow. Values are only read: training is bit-identical, and other steps cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nangrid.records.defaults import HEADROOM_EVERY
from nangrid.watch.state.tensors import module_names

ACTIVATION, GRADIENT = "activation", "gradient"

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer dtype of the same size, by bytes per element."""
_PIECE = {"cpu": 2**18}
"""Elements that are reduced together, by device: as many as fit into a CPU's cache."""
_PIECE_ELSEWHERE = 2**26
"""On other devices the only concern is a small scratch copy of the logits, 262,144 per token for Gemma."""


@dataclass(frozen=True)
class Extreme:
    """The largest magnitude, finite or not, of one module's output or of its gradient in one step."""

    step: int
    order: int
    """The position of the module in the forward pass, from 0."""
    module: str
    kind: str
    """`activation`, or `gradient` for that of the output."""
    absmax: float
    row: int
    position: int
    """Of the token; -1 if the output has no tokens."""
    token: int
    """The token's id; -1 if unknown."""


@dataclass(frozen=True)
class _Sample:
    """What is kept of one output of a module, or of its gradient, until the step ends."""

    module: str
    kind: str
    largest: Tensor
    """Bits of the largest magnitude of each token, still on the device."""
    dtype: torch.dtype
    shape: torch.Size
    ids: Tensor | None
    """The input_ids of the micro-batch."""

    def token(self, index: int) -> tuple[int, int, int]:
        """Row, position and id of a token; -1 for all if the output is not of shape (rows, positions, ...)."""
        if len(self.shape) < 3 or (self.ids is not None and self.ids.shape != self.shape[:2]):
            return -1, -1, -1
        row, position = divmod(index, self.shape[1])
        return row, position, -1 if self.ids is None else int(self.ids[row, position])


class Headroom:
    """Samples a model's steps: call `begin` before and `end` after each; `extremes` holds all results."""

    def __init__(self, model: nn.Module, every: int = HEADROOM_EVERY) -> None:
        self.model = model
        self.every = every
        self.extremes: list[Extreme] = []
        self._hooks: list[RemovableHandle] = []
        self._samples: list[_Sample] = []
        self._order: dict[str, int] = {}
        self._ids: Tensor | None = None
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def begin(self, step: int) -> None:
        """Hook into the model if this step is due for a sample."""
        self._forget()
        if self.every and step % self.every == 0:
            self._hooks.append(self.model.register_forward_pre_hook(self._note_ids, with_kwargs=True))
            for name, module in _sampled_modules(self.model):
                self._hooks.append(module.register_forward_hook(self._sampling(name)))

    def end(self, step: int) -> list[Extreme]:
        """The extremes of the step, empty if it was not due; on a GPU this waits for the device."""
        largest: dict[tuple[str, str], Extreme] = {}
        for sample, size, index in _on_host(self._samples):
            known = largest.get((sample.module, sample.kind))
            if known is None or size > known.absmax or math.isnan(size):
                order, token = self._order[sample.module], sample.token(index)
                largest[sample.module, sample.kind] = Extreme(step, order, sample.module, sample.kind, size, *token)
        self.extremes += largest.values()
        self._forget()
        return list(largest.values())

    def _forget(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._samples, self._ids, self._scratch = [], [], None, {}

    def _note_ids(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._ids = ids if isinstance(ids, Tensor) else None

    def _sampling(self, name: str) -> Any:
        def sample(module: nn.Module, args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
                return
            if value.element_size() not in _BITS:
                return  # 8-bit floats, whose scale is stored elsewhere
            # A module that runs several times keeps the place of its first call.
            self._order.setdefault(name, len(self._order))
            if torch._C._current_autograd_node() is None:  # else checkpointing recomputes it for backward
                self._note(name, ACTIVATION, value.detach())
            if value.requires_grad:
                value.register_hook(lambda gradient: self._note(name, GRADIENT, gradient.detach()))

        return sample

    def _note(self, name: str, kind: str, value: Tensor) -> None:
        if not self._hooks:
            return  # a late gradient of a step that has ended
        sample = _Sample(name, kind, self._largest_per_token(value), value.dtype, value.shape, self._ids)
        self._samples.append(sample)

    def _largest_per_token(self, value: Tensor) -> Tensor:
        """Bits of the largest magnitude of each token, shape (rows * positions,); (1,) for an output without tokens.

        Without the sign bit, IEEE 754 numbers are ordered as their bits are, with NaN last. A CPU compares integers
        ten times as fast as bf16 and fp16.
        """
        bits = value.reshape(math.prod(value.shape[:2]) if value.dim() > 2 else 1, -1).view(_BITS[value.element_size()])
        magnitude = torch.iinfo(bits.dtype).max
        # Reused until the step ends: allocating the memory costs more than the reduction.
        scratch = self._scratch.get((bits.device, bits.dtype))
        if scratch is None:
            scratch = self._scratch[bits.device, bits.dtype] = bits.new_empty(0)
        rows = max(1, _PIECE.get(value.device.type, _PIECE_ELSEWHERE) // bits.shape[1])
        largest = [
            torch.bitwise_and(piece, magnitude, out=scratch.resize_(piece.shape)).amax(1) for piece in bits.split(rows)
        ]
        return torch.cat(largest) if len(largest) > 1 else largest[0]


def _sampled_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module except the parts of adapted layers: an overflow in a part shows in the layer's output."""
    names = module_names(model)
    parts = {part for module in names if hasattr(module, "base_layer") for part in module.modules() if part != module}
    yield from ((name, module) for module, name in names.items() if name and module not in parts)


def _on_host(samples: Sequence[_Sample]) -> Iterator[tuple[_Sample, float, int]]:
    """Every sample with its largest magnitude and the index of that token; one transfer per device and shape."""
    alike: dict[tuple[torch.device, torch.dtype, int], list[_Sample]] = {}
    for sample in samples:
        alike.setdefault((sample.largest.device, sample.dtype, len(sample.largest)), []).append(sample)
    for (_, dtype, _), group in alike.items():
        bits, indices = torch.stack([sample.largest for sample in group]).max(1)
        yield from zip(group, bits.view(dtype).tolist(), indices.tolist(), strict=True)
