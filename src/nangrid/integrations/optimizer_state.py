"""Converts the state of one optimizer into that of another, or into other dtypes.

Every Adam keeps a mean of gradients and a mean of their squares: torch in the dtype of the parameter, bitsandbytes in
float32 or as 8-bit codes with one scale per 256 of them (Dettmers et al. 2022, arXiv 2110.02861). State of the same
kind is never converted, so that it keeps its bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise
from bitsandbytes.optim.optimizer import Optimizer2State
from torch import Tensor, nn

from nangrid.records.errors import InputError
from nangrid.watch.state.snapshot import State

BLOCK = 256
"""Number of codes that share a scale (bitsandbytes)."""
_TORCH = ("exp_avg", "exp_avg_sq")
_MATRIX = ("state1", "state2")
_SIZES = {"absmax1": None, "absmax2": None, "qmap1": 256, "qmap2": 256}
"""Elements of what bitsandbytes keeps beside 8-bit codes; None: one for each block of the parameter."""


def fitted_state(
    state: State,
    before: Mapping[str, Tensor],
    trainables: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> State:
    """`state`, by name of the trainable, as `optimizer` would hold it.

    `before`: the trainables that it belonged to. InputError if the optimizer cannot use it.
    """
    check_shapes(state, trainables)
    places = {id(place[1]): place for place in _places(optimizer)}
    return {
        name: _fitted(entry, before[name], trainables[name], optimizer, places[id(trainables[name])])
        for name, entry in state.items()
    }


def check_shapes(state: State, trainables: Mapping[str, nn.Parameter]) -> None:
    """InputError for state whose tensors do not have the sizes of their parameter: bitsandbytes' kernels trust them."""
    for name, entry in state.items():
        if len({getattr(entry[key], "dtype", None) for key in _MATRIX if key in entry}) > 1:
            raise InputError(f"the optimizer's states of {name[:200]} have several dtypes: give another snapshot.")
        for key, value in entry.items():
            if name not in trainables or not _has_size(key, value, trainables[name]):
                raise InputError(f"the optimizer's {key} of {name[:200]} does not fit: give another snapshot.")


def _has_size(key: str, value: Any, parameter: Tensor) -> bool:
    if key in (*_TORCH, *_MATRIX):
        known = key in _TORCH or (isinstance(value, Tensor) and value.dtype in (torch.uint8, torch.float32))
        return known and isinstance(value, Tensor) and value.shape in (parameter.shape, (2, *parameter.shape))
    if key in _SIZES:
        blocks = math.ceil(parameter.numel() / BLOCK)
        sizes = (_SIZES[key],) if _SIZES[key] else (blocks, 2 * blocks)  # AdEMAMix keeps two means
        return isinstance(value, Tensor) and value.dtype is torch.float32 and value.numel() in sizes
    return key != "step" or isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)


def _places(optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], nn.Parameter, int, int]]:
    groups = enumerate(optimizer.param_groups)
    return [(group, p, g, i) for g, group in groups for i, p in enumerate(group["params"])]


def _fitted(
    state: dict[str, Any],
    before: Tensor,
    parameter: nn.Parameter,
    optimizer: torch.optim.Optimizer,
    place: tuple[dict[str, Any], nn.Parameter, int, int],
) -> dict[str, Any]:
    if isinstance(optimizer, Optimizer2State):
        group, _, *where = place
        optimizer.init_state(group, parameter, *where)
        wanted = optimizer.state.pop(parameter)
        if _is_like(state, wanted):
            return state
        step, mean, square = _moments(state, optimizer)
        return _of_bitsandbytes(wanted, int(step), mean, square)
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and not set(_TORCH) <= set(state):
        step, mean, square = _moments(state, optimizer)
        state = {"step": torch.tensor(float(step)), "exp_avg": mean, "exp_avg_sq": square}
        return {key: value if key == "step" else value.to(parameter) for key, value in state.items()}
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and set(state) & {*_TORCH, *_MATRIX}:
        raise InputError(_unusable(optimizer))
    return {key: _cast_like(value, before, parameter) for key, value in state.items()}


def _is_like(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    if set(state) != set(wanted):
        return False
    facts = [[(entry[key].dtype, entry[key].shape) for key in _MATRIX if key in wanted] for entry in (state, wanted)]
    return facts[0] == facts[1]


def _moments(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> tuple[float, Tensor, Tensor]:
    """Step, mean and mean square of any Adam's state, in float32."""
    if set(_TORCH) <= set(state):
        return float(state["step"]), state["exp_avg"].float(), state["exp_avg_sq"].float()
    if not set(_MATRIX) <= set(state):
        raise InputError(_unusable(optimizer))
    mean, square = (_decoded(state, number) for number in (1, 2))
    return float(state["step"]), mean, square


def _decoded(state: Mapping[str, Any], number: int) -> Tensor:
    values: Tensor = state[f"state{number}"]
    if values.dtype is not torch.uint8:
        return values.float()
    scales, code = state[f"absmax{number}"], state[f"qmap{number}"]
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
    """State in the dtype of its parameter follows the parameter; 8-bit and float32 state is unchanged."""
    if isinstance(value, Tensor) and value.dtype == old.dtype and value.shape == old.shape:
        return value.to(new.dtype)
    return value


def _unusable(optimizer: torch.optim.Optimizer) -> str:
    kind = type(optimizer).__name__
    return f"{kind} cannot use the state of the run's optimizer: train with it from the first step instead."
