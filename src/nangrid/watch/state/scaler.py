"""Reads the scale and the state of a GradScaler without waiting for its device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NO_SCALE = 1.0
_ORDERS = ("grad_scale", "found_inf")
"""Attributes of an optimizer while GradScaler.step runs it."""


def scale_of(scaler: torch.amp.GradScaler | None) -> Tensor | float:
    """The scale, on the device that the scaler keeps it on; 1 without a scaler."""
    if scaler is None:
        return NO_SCALE
    # A scaler has no tensor before its first loss.
    return scaler.get_scale() if scaler._scale is None else scaler._scale


def unscaled(number: Tensor, scaler: torch.amp.GradScaler | None) -> Tensor:
    """The unscaled value of a scaled loss, in the loss's dtype."""
    scale = scale_of(scaler)
    if isinstance(scale, Tensor):
        scale = scale.to(number.device, non_blocking=True)
    return number if scaler is None else (number / scale).to(number.dtype)


def orders(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """A function that gives a fused optimizer what a scaler has just told it: the scale, and whether to skip."""
    told = {key: value for key, value in vars(optimizer).items() if key in _ORDERS}

    def restore() -> None:
        for key in _ORDERS:
            vars(optimizer).pop(key, None)
        vars(optimizer).update(told)

    return restore


class KeptScale:
    """The scale of a scaler at one time."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self._scaler = scaler
        scale = scale_of(scaler)
        self._scale = scale.clone() if isinstance(scale, Tensor) else scale
        self._writes = self._written()

    def _written(self) -> tuple[int, int]:
        scale = self._scaler._scale
        return (id(scale), 0 if scale is None else scale._version)

    def has_shrunk(self) -> bool:
        """Whether the scale is smaller now; waits for the device only if something was written to it."""
        if self._scaler._scale is None or self._written() == self._writes:
            return False
        return bool(self._scaler._scale < self._scale)


def state_of(scaler: torch.amp.GradScaler | None) -> dict[str, Any]:
    """The scaler's `state_dict`, with copies of the tensors in place of the numbers that are on the device."""
    if scaler is None:
        return {}
    if scaler._scale is None or scaler._growth_tracker is None:
        return scaler.state_dict()
    return {
        "scale": scaler._scale.clone(),
        "growth_factor": scaler.get_growth_factor(),
        "backoff_factor": scaler.get_backoff_factor(),
        "growth_interval": scaler.get_growth_interval(),
        "_growth_tracker": scaler._growth_tracker.clone(),
    }


def as_numbers(state: dict[str, Any]) -> dict[str, Any]:
    """What `state_of` gave, as a `state_dict`; waits for the device."""
    return {key: value.item() if isinstance(value, Tensor) else value for key, value in state.items()}
