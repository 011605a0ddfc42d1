"""How far is each module from the end of each float format?

On the first step and every n-th, the largest activation and the largest gradient of every module's output are noted,
with the token that they stand at. headroom = log2(largest number of a dtype / largest seen), in bits: what is below 0
would overflow. The values are only read: training is the same to the last bit, and other steps cost nothing.
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
"""Of a number, by its bytes."""
_PIECE = {"cpu": 2**18}
"""Elements that are looked at together, by device: what stays in a processor's cache. Elsewhere _PIECE_ELSEWHERE,
which only keeps the copy of 262,144 logits a token small."""
_PIECE_ELSEWHERE = 2**26


@dataclass(frozen=True)
class Extreme:
    """The largest finite or infinite magnitude of one module's output in one step."""

    step: int
    order: int
    """Of the module in the forward pass."""
    module: str
    kind: str
    """activation, or the gradient of it."""
    absmax: float
    row: int
    position: int
    """Of the token; -1 where the output has no tokens."""
    token: int
    """Its id; -1 where it is not known."""


@dataclass(frozen=True)
class _Look:
    """One output of a module, or the gradient of one."""

    module: str
    kind: str
    largest: Tensor
    """Bits of the largest magnitude of each token, on its device."""
    dtype: torch.dtype
    shape: torch.Size
    ids: Tensor | None
    """Of the micro-batch."""

    def token(self, index: int) -> tuple[int, int, int]:
        """Row, position and id; -1 for what is not known, as in outputs that are not (rows, positions, ...)."""
        if len(self.shape) < 3 or (self.ids is not None and self.ids.shape != self.shape[:2]):
            return -1, -1, -1
        row, position = divmod(index, self.shape[1])
        return row, position, -1 if self.ids is None else int(self.ids[row, position])


class Headroom:
    """Looks at a model's steps. `begin` before a step that is due, `end` after it."""

    def __init__(self, model: nn.Module, every: int = HEADROOM_EVERY) -> None:
        self.model = model
        self.every = every
        self.seen: list[Extreme] = []
        self._hooks: list[RemovableHandle] = []
        self._looks: list[_Look] = []
        self._order: dict[str, int] = {}
        self._ids: Tensor | None = None
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def begin(self, step: int) -> None:
        """Look at this step if it is due."""
        self._forget()
        if self.every and step % self.every == 0:
            self._hooks.append(self.model.register_forward_pre_hook(self._note_ids, with_kwargs=True))
            for name, module in _looked_at(self.model):
                self._hooks.append(module.register_forward_hook(self._looking_at(name)))

    def end(self, step: int) -> list[Extreme]:
        """What was seen in it; on a GPU this is where it is waited for."""
        largest: dict[tuple[str, str], Extreme] = {}
        for look, size, index in _on_host(self._looks):
            known = largest.get((look.module, look.kind))
            if known is None or size > known.absmax or math.isnan(size):
                order, token = self._order[look.module], look.token(index)
                largest[look.module, look.kind] = Extreme(step, order, look.module, look.kind, size, *token)
        self.seen += largest.values()
        self._forget()
        return list(largest.values())

    def _forget(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._looks, self._ids, self._scratch = [], [], None, {}

    def _note_ids(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._ids = ids if isinstance(ids, Tensor) else None

    def _looking_at(self, name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
                return
            if value.element_size() not in _BITS:
                return  # of an 8-bit format, whose numbers have a scale elsewhere
            self._order.setdefault(name, len(self._order))
            if torch._C._current_autograd_node() is None:  # else it is computed anew for the backward pass
                self._note(name, ACTIVATION, value.detach())
            if value.requires_grad:
                value.register_hook(lambda gradient: self._note(name, GRADIENT, gradient.detach()))

        return look

    def _note(self, name: str, kind: str, value: Tensor) -> None:
        if not self._hooks:
            return  # a gradient of a step that has been left
        look = _Look(name, kind, self._largest_per_token(value), value.dtype, value.shape, self._ids)
        self._looks.append(look)

    def _largest_per_token(self, value: Tensor) -> Tensor:
        """Bits of the largest magnitude of each token (rows x positions), or of all where there are no tokens.

        Without their sign, numbers are ordered as their bits are, NaN last (IEEE 754), and whole numbers are compared
        ten times as fast as bf16 and fp16 on a CPU.
        """
        bits = value.reshape(math.prod(value.shape[:2]) if value.dim() > 2 else 1, -1).view(_BITS[value.element_size()])
        magnitude = torch.iinfo(bits.dtype).max
        # memory that is kept until the look is over: fresh one costs more than the look
        scratch = self._scratch.get((bits.device, bits.dtype))
        if scratch is None:
            scratch = self._scratch[bits.device, bits.dtype] = bits.new_empty(0)
        rows = max(1, _PIECE.get(value.device.type, _PIECE_ELSEWHERE) // bits.shape[1])
        found = [
            torch.bitwise_and(piece, magnitude, out=scratch.resize_(piece.shape)).amax(1) for piece in bits.split(rows)
        ]
        return torch.cat(found) if len(found) > 1 else found[0]


def _looked_at(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module but the parts of an adapted layer: what overflows in them does so in their sum, its output."""
    names = module_names(model)
    parts = {part for module in names if hasattr(module, "base_layer") for part in module.modules() if part != module}
    yield from ((name, module) for module, name in names.items() if name and module not in parts)


def _on_host(looks: Sequence[_Look]) -> Iterator[tuple[_Look, float, int]]:
    """Every look with the largest magnitude and the index of its token; waits once for each device and shape."""
    alike: dict[tuple[torch.device, torch.dtype, int], list[_Look]] = {}
    for look in looks:
        alike.setdefault((look.largest.device, look.dtype, len(look.largest)), []).append(look)
    for (_, dtype, _), group in alike.items():
        bits, indices = torch.stack([look.largest for look in group]).max(1)
        yield from zip(group, bits.view(dtype).tolist(), indices.tolist(), strict=True)
