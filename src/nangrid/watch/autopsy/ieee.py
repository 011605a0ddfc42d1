"""Classifies a new non-finite number by its IEEE 754 exception: overflow, division by zero, or invalid operation.

The operation is repeated in float64: if the element is finite there, it overflowed in its own dtype. If it is infinite
there too, the operation is repeated with the operands clamped to [-1, 1]: a true pole stays infinite, an overflow
becomes finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from nangrid.watch.state.tensors import elements

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
_COUNTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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
    elementwise = is_elementwise(func)

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


def is_elementwise(func: Any) -> bool:
    """Whether each element of the result is made of one element of each operand."""
    return torch.Tag.pointwise in func.tags or base_name(func).startswith(("_foreach_", "_fused_", "_to_copy"))


def base_name(func: Any) -> str:
    """The operation's name without namespace and overload."""
    return str(func._schema.name.split("::")[-1])


def written_tensors(func: Any, args: Any, kwargs: Any, result: Any) -> list[tuple[int | None, Tensor]]:
    """The elements of every tensor that an operation wrote: mutated arguments, then fresh outputs.

    Each comes with its index in a list of tensors (foreach and fused optimizers), or None.
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
    """The values of the schema's arguments, in its order; None where the default applies."""
    names = [argument.name for argument in func._schema.arguments]
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]


def operands(func: Any, args: Any, kwargs: Any) -> list[tuple[str, int | None, Tensor]]:
    """Every tensor that an operation read: its name in the schema, its index in a list of tensors, its elements."""
    read = []
    for name, value in _read_arguments(func, args, kwargs):
        read += [(name, place, tensor) for place, tensor in _tensors(value)]
    return read


def numbers(func: Any, args: Any, kwargs: Any) -> list[tuple[str, int | None, Tensor | float]]:
    """As `operands`, in the same order, with the numbers among the arguments and the integers of elementwise ones."""
    read: list[tuple[str, int | None, Tensor | float]] = []
    for name, value in _read_arguments(func, args, kwargs):
        several = isinstance(value, list | tuple)
        for place, item in enumerate(value if several else [value]):
            at = place if several else None
            if isinstance(item, Tensor):
                counts = is_elementwise(func) and item.dtype in _COUNTS and item.layout is torch.strided
                read += [(name, at, tensor) for _, tensor in ([(None, item)] if counts else _tensors(item))]
            elif type(item) in (int, float) and name not in _sizes(func):
                read.append((name, at, item))
    return read


def _read_arguments(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[str, Any]]:
    overwrites = base_name(func) in _OVERWRITES
    for argument, value in zip(func._schema.arguments, _bound(func, args, kwargs), strict=True):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if not (written and (overwrites or argument.is_out)):
            yield argument.name, value


def _sizes(func: Any) -> set[str]:
    """The arguments that are sizes, dimensions or switches, not numbers to calculate with."""
    calculated = ("Tensor", "number", "float")
    return {a.name for a in func._schema.arguments if not any(kind in str(a.type) for kind in calculated)}


def _tensors(value: Any) -> list[tuple[int | None, Tensor]]:
    if isinstance(value, list | tuple):
        return [(i, tensor) for i, item in enumerate(value) for _, tensor in _tensors(item)]
    tensor = elements(value) if isinstance(value, Tensor) else None
    return [(None, tensor)] if tensor is not None and tensor.numel() else []
