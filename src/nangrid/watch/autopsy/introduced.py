"""Tells which elements an operation made non-finite, as opposed to passing them on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from nangrid.watch.autopsy.operands import schema
from nangrid.watch.state.tensors import is_finite


def newly_nonfinite(func: Any, operands: list[Tensor], written: Tensor) -> Tensor:
    """Mask (shape of `written`) of the elements that this operation made non-finite rather than passed on.

    Elementwise operations are judged per element. An element is new if every operand was finite there, or if it is NaN
    and no operand was (inf - inf). If some NaN came from finite operands, only elements with finite operands count.
    Other operations (matmul, reductions) are judged as a whole. `operands`: values from before the call.
    """
    nonfinite, nan = ~torch.isfinite(written), written.isnan()
    if not schema(func).elementwise:
        return _as_a_whole(operands, nonfinite, nan)
    try:
        aligned = [operand.expand(written.shape) for operand in operands]
    except RuntimeError:  # no broadcast
        return _as_a_whole(operands, nonfinite, nan)
    none_is_nan, all_finite = torch.ones_like(nan), torch.ones_like(nan)
    for operand in aligned:
        none_is_nan &= ~operand.isnan()
        all_finite &= operand.isfinite()
    from_finite = nonfinite & all_finite
    return from_finite if (from_finite & nan).any() else from_finite | (nan & none_is_nan)


def _as_a_whole(operands: list[Tensor], nonfinite: Tensor, nan: Tensor) -> Tensor:
    if nan.any():
        return nan if not any(operand.isnan().any() for operand in operands) else torch.zeros_like(nan)
    return nonfinite if all(map(is_finite, operands)) else torch.zeros_like(nonfinite)


def copies(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments, with a copy of every tensor that the operation is about to overwrite."""
    of = schema(func)
    if not of.written:
        return args, kwargs

    def copied(value: Any) -> Any:
        return tree_map(lambda part: part.clone() if isinstance(part, Tensor) else part, value)

    args = tuple(copied(a) if of.arguments[i] in of.written else a for i, a in enumerate(args))
    return args, {name: copied(value) if name in of.written else value for name, value in kwargs.items()}
