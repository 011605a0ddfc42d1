"""Classifies a new non-finite number by its IEEE 754 exception: overflow, division by zero, or invalid operation.

The operation is repeated in float64: if the element is finite there, it overflowed in its own dtype. If it is infinite
there too, the operation is repeated with the operands clamped to [-1, 1]: a true pole stays infinite, an overflow
becomes finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from nangrid.watch.autopsy.operands import schema, written_tensors

OVERFLOW = "overflow"
DIVIDE_BY_ZERO = "divide_by_zero"
INVALID = "invalid"
NONFINITE_INPUT = "nonfinite_input"


def ieee_kind(func: Any, args: Any, kwargs: Any, written: Tensor, output: int, index: tuple[int, ...]) -> str:
    """The kind of the non-finite element at `index` of `written`, which is tensor number `output` of what `func` wrote.

    `args` and `kwargs` are the operands as they were before the operation.
    """
    # Repeating the operation decides by arithmetic, without a list of known operations.
    in_float64 = _magnitude(func, lambda: _widened(func, args, kwargs), output, written, index)
    if in_float64 is None:
        return INVALID if written[index].isnan() else OVERFLOW
    if math.isfinite(in_float64):
        return OVERFLOW
    if math.isnan(in_float64):
        return INVALID
    bounded = _magnitude(func, lambda: _bounded(*_widened(func, args, kwargs)), output, written, index)
    return DIVIDE_BY_ZERO if bounded is not None and math.isinf(bounded) else OVERFLOW


def _widened(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Copies of the operands in float64; integers too, where they are numbers and not indices."""
    elementwise = schema(func).elementwise

    def widen(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_complex():
            return value.detach().to(torch.complex128)
        if isinstance(value, Tensor) and value.dtype != torch.bool and (elementwise or value.is_floating_point()):
            return value.detach().clone().double()
        return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value

    return tree_map(widen, args), tree_map(widen, kwargs)


def _bounded(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The operands clamped to [-1, 1]: zeros, and with them poles, stay where they are."""

    def bound(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.clamp_(-1, 1)
        return max(-1.0, min(1.0, value)) if type(value) is float else value

    return tree_map(bound, args), tree_map(bound, kwargs)


def _magnitude(
    func: Any, operands: Callable[[], tuple[Any, Any]], output: int, like: Tensor, index: tuple[int, ...]
) -> float | None:
    """|element| of what the operation writes for these operands; None if it does not take them (custom kernels)."""
    try:
        args, kwargs = operands()
        tensors = written_tensors(func, args, kwargs, func(*args, **kwargs))
    except Exception:  # kernels without float64 raise many kinds of errors
        return None
    fits = output < len(tensors) and tensors[output][1].shape == like.shape
    return float(tensors[output][1][index].abs()) if fits else None
