"""Which IEEE 754 exception made a non-finite number out of finite ones?

The operation is made once more in float64: what is finite there overflowed here. What is infinite there too is
made again with operands no larger than 1: a pole stays one, and what merely grew too large does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

OVERFLOW = "overflow"
DIVIDE_BY_ZERO = "divide_by_zero"
INVALID = "invalid"
NONFINITE_INPUT = "nonfinite_input"

_WITH_VALUES = (torch.jagged, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
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
    exact = _element(func, lambda: _widened(func, args, kwargs), which, written, first)
    if exact is None:
        return INVALID if written[first].isnan() else OVERFLOW
    if math.isfinite(exact):
        return OVERFLOW
    if math.isnan(exact):
        return INVALID
    bounded = _element(func, lambda: _bounded(*_widened(func, args, kwargs)), which, written, first)
    return DIVIDE_BY_ZERO if bounded is not None and math.isinf(bounded) else OVERFLOW


def _widened(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Copies of the operands in float64; integers too, where they are numbers and not indices."""
    elementwise = is_elementwise(func)

    def widen(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_complex():
            return leaf.detach().to(torch.complex128)
        if isinstance(leaf, Tensor) and leaf.dtype != torch.bool and (elementwise or leaf.is_floating_point()):
            return leaf.detach().clone().double()
        return torch.float64 if isinstance(leaf, torch.dtype) and leaf.is_floating_point else leaf

    return tree_map(widen, args), tree_map(widen, kwargs)


def _bounded(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The same with every number between -1 and 1: no zero and no pole moves."""

    def bound(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.clamp_(-1, 1)
        return max(-1.0, min(1.0, leaf)) if type(leaf) is float else leaf

    return tree_map(bound, args), tree_map(bound, kwargs)


def _element(
    func: Any, operands: Callable[[], tuple[Any, Any]], which: int, like: Tensor, index: tuple[int, ...]
) -> float | None:
    """The size of an element of what the operation writes; None where it takes no such operands (custom kernels)."""
    try:
        args, kwargs = operands()
        tensors = written_tensors(func, args, kwargs, func(*args, **kwargs))
    except Exception:  # a kernel without float64 says so in many ways
        return None
    fits = which < len(tensors) and tensors[which][1].shape == like.shape
    return float(tensors[which][1][index].abs()) if fits else None


def is_elementwise(func: Any) -> bool:
    """Whether each element of the result is made of one element of each operand."""
    return torch.Tag.pointwise in func.tags or base_name(func).startswith(("_foreach_", "_fused_", "_to_copy"))


def base_name(func: Any) -> str:
    """The operation's name without namespace and overload."""
    return str(func._schema.name.split("::")[-1])


def written_tensors(func: Any, args: Any, kwargs: Any, result: Any) -> list[tuple[int | None, Tensor]]:
    """The elements of the tensors that an operation wrote: mutated arguments, then fresh outputs.

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
    """The elements of the tensors that an operation read: name in the schema, place in a list, tensor."""
    overwrites = func._schema.name.split("::")[-1] in _OVERWRITES
    found = []
    for argument, value in zip(func._schema.arguments, _bound(func, args, kwargs), strict=True):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if not (written and (overwrites or argument.is_out)):
            found += [(argument.name, place, tensor) for place, tensor in _tensors(value)]
    return found


def _tensors(value: Any) -> list[tuple[int | None, Tensor]]:
    if isinstance(value, list | tuple):
        return [(i, tensor) for i, leaf in enumerate(value) for _, tensor in _tensors(leaf)]
    tensor = elements(value) if isinstance(value, Tensor) else None
    return [(None, tensor)] if tensor is not None and tensor.numel() else []


def elements(tensor: Tensor) -> Tensor | None:
    """The memory that holds its floating-point or complex numbers: of a sparse or jagged one the values.

    None where there is none to be looked at: whole numbers, meta tensors, layouts of other libraries.
    """
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    if tensor.layout is torch.strided:
        return None if tensor.is_nested else tensor.detach()
    if tensor.layout is torch.sparse_coo:
        return tensor.detach()._values()
    if tensor.layout in _WITH_VALUES:
        return tensor.detach().values()
    return None
