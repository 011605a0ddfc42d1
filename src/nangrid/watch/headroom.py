"""How far is each module from the end of each float format?

On the first step and every n-th, the largest activation and the largest gradient of every module's output are noted,
with the token that they stand at. headroom = log2(largest number of a dtype / largest seen), in bits: what is below 0
would overflow. The values are only read: training is the same to the last bit, and other steps cost nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nangrid.watch.places import module_names

ACTIVATION, GRADIENT = "activation", "gradient"
EVERY = 10
"""Steps between two looks."""


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
    """The largest element of one output, on its device, and at which token it stands."""

    size: Tensor
    index: Tensor
    shape: torch.Size
    ids: Tensor | None
    """Of the micro-batch."""

    def token(self) -> tuple[int, int, int]:
        """Row, position and id; -1 for what is not known, as in outputs that are not (rows, positions, ...)."""
        if len(self.shape) < 3:
            return -1, -1, -1
        row, position = divmod(int(self.index), self.shape[1])
        if self.ids is None or self.ids.shape != self.shape[:2]:
            return row, position, -1
        return row, position, int(self.ids[row, position])


class Headroom:
    """Looks at a model's steps. `begin` before a step that is due, `end` after it."""

    def __init__(self, model: nn.Module, every: int = EVERY) -> None:
        self.model = model
        self.every = every
        self.seen: list[Extreme] = []
        self._hooks: list[RemovableHandle] = []
        self._largest: dict[tuple[str, str], list[_Look]] = {}
        self._order: dict[str, int] = {}
        self._ids: Tensor | None = None

    def begin(self, step: int) -> None:
        """Look at this step if it is due."""
        self._forget()
        if self.every and step % self.every == 0:
            self._hooks.append(self.model.register_forward_pre_hook(self._note_ids, with_kwargs=True))
            for module, name in module_names(self.model).items():
                if name:
                    self._hooks.append(module.register_forward_hook(self._looking_at(name)))

    def end(self, step: int) -> list[Extreme]:
        """What was seen in it; on a GPU this is where it is waited for."""
        found = []
        for (module, kind), looks in self._largest.items():
            sizes = torch.stack([look.size for look in looks]).tolist()
            at = max(range(len(sizes)), key=lambda i: (math.isnan(sizes[i]), sizes[i]))
            row, position, token = looks[at].token()
            found.append(Extreme(step, self._order[module], module, kind, sizes[at], row, position, token))
        self.seen += found
        self._forget()
        return found

    def _forget(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._largest, self._ids = [], {}, None

    def _note_ids(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._ids = ids if isinstance(ids, Tensor) else None

    def _looking_at(self, name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple | list) and output else output
            if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
                return
            self._order.setdefault(name, len(self._order))
            self._note(name, ACTIVATION, value.detach())
            if value.requires_grad:
                value.register_hook(lambda gradient: self._note(name, GRADIENT, gradient.detach()))

        return look

    def _note(self, name: str, kind: str, value: Tensor) -> None:
        if not self._hooks:
            return  # a gradient of a step that has been left
        # one pass and no copy: half the time of abs and argmax over the logits
        lowest, highest = torch.aminmax(value.flatten(2) if value.dim() > 2 else value.reshape(1, 1, -1), dim=-1)
        sizes = torch.maximum(-lowest, highest).flatten()
        index = sizes.argmax()
        look = _Look(sizes[index].float(), index, value.shape, self._ids)
        self._largest.setdefault((name, kind), []).append(look)
