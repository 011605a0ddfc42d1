"""Presents the optimizers of a loop as one that holds the state of all."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside Accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def together(optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """One optimizer with the param_groups and the state of all; a single one is itself."""
    return optimizers[0] if len(optimizers) == 1 else cast(torch.optim.Optimizer, _Together(optimizers))


class _Together:
    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self.state = _States(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]


class _States(MutableMapping[Tensor, Any]):
    """The state of each parameter, in the optimizer that trains it."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers

    def _of(self, parameter: Tensor) -> MutableMapping[Tensor, Any]:
        for optimizer in self._optimizers:
            if parameter in optimizer.state:
                return optimizer.state
        owners = (o for o in self._optimizers if any(p is parameter for g in o.param_groups for p in g["params"]))
        return next(owners, self._optimizers[0]).state

    def __getitem__(self, parameter: Tensor) -> Any:
        # A defaultdict would make an entry.
        state = self._of(parameter)
        if parameter not in state:
            raise KeyError(parameter)
        return state[parameter]

    def __setitem__(self, parameter: Tensor, state: Any) -> None:
        self._of(parameter)[parameter] = state

    def __delitem__(self, parameter: Tensor) -> None:
        del self._of(parameter)[parameter]

    def __iter__(self) -> Iterator[Tensor]:
        return (parameter for optimizer in self._optimizers for parameter in optimizer.state)

    def __len__(self) -> int:
        return sum(len(optimizer.state) for optimizer in self._optimizers)
