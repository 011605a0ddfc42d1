"""Which IEEE 754 exception made a non-finite number out of finite ones?

The operation is made once more in float64: what is finite there overflowed here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

OVERFLOW = "overflow"
DIVIDE_BY_ZERO = "divide_by_zero"
INVALID = "invalid"
NONFINITE_INPUT = "nonfinite_input"

_POLES = (
    "log",
    "div",
    "reciprocal",
    "rsqrt",
    "pow",
    "xlogy",
    "logit",
    "atanh",
    "addcdiv",
    "lgamma",
    "digamma",
)
"""Operations with a pole: an exact infinity at finite operands."""
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
    exact = _in_float64(func, args, kwargs, which)
    if exact is None or exact.shape != written.shape:
        return INVALID if written[first].isnan() else OVERFLOW
    value = exact[first]
    if value.isfinite():
        return OVERFLOW
    if value.isnan():
        return INVALID
    return DIVIDE_BY_ZERO if _has_pole(func) and _has_zero(args, kwargs) else OVERFLOW


def _has_pole(func: Any) -> bool:
    name = func._schema.name.split("::")[-1]
    return any(pole in name for pole in _POLES)


def _has_zero(args: Any, kwargs: Any) -> bool:
    operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor | int | float)]
    return any(bool((operand == 0).any()) if isinstance(operand, Tensor) else operand == 0 for operand in operands)


def _in_float64(func: Any, args: Any, kwargs: Any, which: int) -> Tensor | None:
    """The operation's result from float64 operands; None where it takes none (custom kernels, half casts)."""

    def widen(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf.detach().double()
        if isinstance(leaf, Tensor) and leaf.is_complex():
            return leaf.detach().to(torch.complex128)
        return torch.float64 if isinstance(leaf, torch.dtype) and leaf.is_floating_point else leaf

    wide_args, wide_kwargs = tree_map(widen, (args, kwargs))
    try:
        result = func(*wide_args, **wide_kwargs)
        tensors = written_tensors(func, wide_args, wide_kwargs, result)
    except Exception:  # a kernel without float64 says so in many ways
        return None
    return tensors[which][1] if which < len(tensors) else None


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
