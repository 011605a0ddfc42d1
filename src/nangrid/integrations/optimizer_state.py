"""How does the state of one optimizer become that of another, or of the same one over other dtypes?

Every Adam keeps a mean of gradients and a mean of their squares: torch in the dtype of the parameter, bitsandbytes in
float32 or as 8-bit codes with a scale for each 256 of them (Dettmers et al. 2022, arXiv 2110.02861). What stays the
same kind is never converted, so that it keeps its bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise
from bitsandbytes.optim.optimizer import Optimizer2State
from torch import Tensor, nn

from nangrid.records.errors import InputError
from nangrid.watch.state.snapshot import State

BLOCK = 256
"""Codes that share a scale (bitsandbytes)."""
_TORCH = ("exp_avg", "exp_avg_sq")
_MATRIX = ("state1", "state2")


def fitted_state(
    state: State,
    before: Mapping[str, Tensor],
    trainables: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> State:
    """`state`, by trainable, as `optimizer` would hold it.

    `before`: the trainables that it was the state of. InputError where the optimizer has no use for it.
    """
    places = {id(place[1]): place for place in _places(optimizer)}
    return {
        name: _fitted(kept, before[name], trainables[name], optimizer, places[id(trainables[name])])
        for name, kept in state.items()
    }


def _places(optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], nn.Parameter, int, int]]:
    groups = enumerate(optimizer.param_groups)
    return [(group, p, g, i) for g, group in groups for i, p in enumerate(group["params"])]


def _fitted(
    kept: dict[str, Any],
    before: Tensor,
    parameter: nn.Parameter,
    optimizer: torch.optim.Optimizer,
    place: tuple[dict[str, Any], nn.Parameter, int, int],
) -> dict[str, Any]:
    if isinstance(optimizer, Optimizer2State):
        group, _, *where = place
        optimizer.init_state(group, parameter, *where)
        wanted = optimizer.state.pop(parameter)
        if _is_like(kept, wanted):
            return kept
        step, mean, square = _moments(kept, optimizer)
        return _of_bitsandbytes(wanted, int(step), mean, square)
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and not set(_TORCH) <= set(kept):
        step, mean, square = _moments(kept, optimizer)
        kept = {"step": torch.tensor(float(step)), "exp_avg": mean, "exp_avg_sq": square}
        return {key: value if key == "step" else value.to(parameter) for key, value in kept.items()}
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and set(kept) & {*_TORCH, *_MATRIX}:
        raise InputError(_useless(optimizer))
    return {key: _cast_like(value, before, parameter) for key, value in kept.items()}


def _is_like(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    same = set(kept) == set(wanted)
    return same and all(kept[key].dtype == wanted[key].dtype for key in _MATRIX if key in wanted)


def _moments(kept: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> tuple[float, Tensor, Tensor]:
    """Step, mean and mean square in float32, of any Adam's state."""
    if set(_TORCH) <= set(kept):
        return float(kept["step"]), kept["exp_avg"].float(), kept["exp_avg_sq"].float()
    if not set(_MATRIX) <= set(kept):
        raise InputError(_useless(optimizer))
    mean, square = (_decoded(kept, number) for number in (1, 2))
    return float(kept["step"]), mean, square


def _decoded(kept: Mapping[str, Any], number: int) -> Tensor:
    values: Tensor = kept[f"state{number}"]
    if values.dtype is not torch.uint8:
        return values.float()
    scales, code = kept[f"absmax{number}"], kept[f"qmap{number}"]
    decoded: Tensor = dequantize_blockwise(values, absmax=scales, code=code, blocksize=BLOCK)
    return decoded


def _of_bitsandbytes(wanted: dict[str, Any], step: int, mean: Tensor, square: Tensor) -> dict[str, Any]:
    wanted["step"] = step
    for number, values in ((1, mean), (2, square)):
        into: Tensor = wanted[f"state{number}"]
        if into.dtype is torch.uint8:
            codes, facts = quantize_blockwise(values.contiguous(), code=wanted[f"qmap{number}"], blocksize=BLOCK)
            into.copy_(codes.view(into.shape))
            wanted[f"absmax{number}"].copy_(facts.absmax)
        else:
            into.copy_(values)
    return wanted


def _cast_like(value: Any, old: Tensor, new: Tensor) -> Any:
    """State kept in its parameter's dtype follows the parameter; 8-bit and float32 state stays."""
    if isinstance(value, Tensor) and value.dtype == old.dtype and value.shape == old.shape:
        return value.to(new.dtype)
    return value


def _useless(optimizer: torch.optim.Optimizer) -> str:
    kind = type(optimizer).__name__
    return f"{kind} has no use for what another optimizer has kept so far: train from the first step with it instead."
