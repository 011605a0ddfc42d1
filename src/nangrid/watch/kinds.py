"""Which IEEE 754 exception made a non-finite number out of finite ones?

The operation is made once more in float64: what is finite there overflowed here. What is infinite there too is
made again with operands no larger than 1: a pole stays one, and what merely grew too large does not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

OVERFLOW = "overflow"
DIVIDE_BY_ZERO = "divide_by_zero"
INVALID = "invalid"
NONFINITE_INPUT = "nonfinite_input"

_OVERWRITES = (
    "copy_",
    "fill_",
    "zero_",
    "normal_",
    "uniform_",
    "random_",
    "bernoulli_",
    "set_",
    "_foreach_copy_",
)
"""Operations that write an argument without reading it."""


def ieee_kind(func: Any, args: Any, kwargs: Any, written: Tensor, which: int, first: tuple[int, ...]) -> str:
    """The kind of the non-finite element `first` of `written`, the `which`-th tensor that `func` wrote.

    `args` and `kwargs` are the operands as they were before the operation.
    """
    exact = _element(func, *_widened(func, args, kwargs), which, written, first)
    if exact is None:
        return INVALID if written[first].isnan() else OVERFLOW
    if math.isfinite(exact):
        return OVERFLOW
    if math.isnan(exact):
        return INVALID
    bounded = _element(func, *_bounded(*_widened(func, args, kwargs)), which, written, first)
    return DIVIDE_BY_ZERO if bounded is not None and math.isinf(bounded) else OVERFLOW


def _widened(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Copies of the operands in float64; integers too, where they are numbers and not indices."""
    elementwise = is_elementwise(func)

    def widen(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dtype != torch.bool and (elementwise or leaf.is_floating_point()):
            return leaf if leaf.is_complex() else leaf.detach().to(torch.float64, copy=True)
        return torch.float64 if isinstance(leaf, torch.dtype) and leaf.is_floating_point else leaf

    return tree_map(widen, args), tree_map(widen, kwargs)


def _bounded(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The same with every number between -1 and 1: no zero and no pole moves."""

    def bound(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.clamp_(-1, 1)
        return max(-1.0, min(1.0, leaf)) if type(leaf) is float else leaf

    return tree_map(bound, args), tree_map(bound, kwargs)


def _element(func: Any, args: Any, kwargs: Any, which: int, like: Tensor, index: tuple[int, ...]) -> float | None:
    """One element of what the operation writes; None where it takes no such operands (custom kernels)."""
    try:
        tensors = written_tensors(func, args, kwargs, func(*args, **kwargs))
    except Exception:  # a kernel without float64 says so in many ways
        return None
    fits = which < len(tensors) and tensors[which][1].shape == like.shape
    return float(tensors[which][1][index]) if fits else None


def is_elementwise(func: Any) -> bool:
    """Whether each element of the result is made of one element of each operand."""
    name = func._schema.name.split("::")[-1]
    return torch.Tag.pointwise in func.tags or name.startswith(("_foreach_", "_fused_"))


def written_tensors(func: Any, args: Any, kwargs: Any, result: Any) -> list[tuple[int | None, Tensor]]:
    """The floating-point tensors that an operation wrote: mutated arguments, then fresh outputs.

    Each with its place in a list of tensors (foreach and fused optimizers), or None.
    """
    written: list[tuple[int | None, Tensor]] = []
    for argument, value in zip(func._schema.arguments, _bound(func, args, kwargs), strict=True):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += _tensors(value)
    returns = [] if result is None else [result] if len(func._schema.returns) == 1 else list(result)
    for declared, value in zip(func._schema.returns, returns, strict=False):
        if declared.alias_info is None:
            written += _tensors(value)
    return written


def _bound(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """Values of the schema's arguments, in its order; None where the default holds."""
    names = [argument.name for argument in func._schema.arguments]
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]


def operands(func: Any, args: Any, kwargs: Any) -> list[tuple[str, int | None, Tensor]]:
    """The floating-point tensors that an operation read: name in the schema, place in a list, tensor."""
    overwrites = func._schema.name.split("::")[-1] in _OVERWRITES
    found = []
    for argument, value in zip(func._schema.arguments, _bound(func, args, kwargs), strict=True):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if not (written and (overwrites or argument.is_out)):
            found += [(argument.name, place, tensor) for place, tensor in _tensors(value)]
    return found


def _tensors(value: Any) -> list[tuple[int | None, Tensor]]:
    if isinstance(value, Tensor):
        return [(None, value)] if value.is_floating_point() and value.numel() else []
    if isinstance(value, list | tuple):
        pairs = enumerate(value)
        return [(i, t) for i, t in pairs if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]
    return []
