"""Which elements did an operation make non-finite, and not merely carry on?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from nangrid.watch.autopsy.ieee import elements, is_elementwise


def newly_nonfinite(func: Any, operands: list[Tensor], written: Tensor) -> Tensor:
    """A mask of `written`. `operands` are as they were before the operation.

    Elementwise, an element is born of finite ones, or is a NaN without a NaN among what it was made of; the
    latter are left out beside a NaN of the former kind. Of other operations all is born, or nothing.
    """
    bad, nan = ~torch.isfinite(written), written.isnan()
    if is_elementwise(func):
        try:
            wide_operands = [operand.expand(written.shape) for operand in operands]
        except RuntimeError:  # no broadcast
            return _as_a_whole(operands, bad, nan)
        no_nan, finite = torch.ones_like(bad), torch.ones_like(bad)
        for operand in wide_operands:
            no_nan &= ~operand.isnan()
            finite &= operand.isfinite()
        finite &= bad
        return finite if (finite & nan).any() else finite | (no_nan & nan)
    return _as_a_whole(operands, bad, nan)


def _as_a_whole(operands: list[Tensor], bad: Tensor, nan: Tensor) -> Tensor:
    if nan.any():
        return nan if not any(operand.isnan().any() for operand in operands) else torch.zeros_like(nan)
    return bad if all(map(is_finite, operands)) else torch.zeros_like(bad)


def is_finite(tensor: Tensor) -> bool:
    """Whether every element is: one pass, where `isfinite().all()` is twenty times slower on a CPU."""
    values = elements(tensor)
    if values is None or not values.numel():
        return True
    values = wide(values)
    real = torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
    extremes = torch.stack(torch.aminmax(real))
    return bool(torch.isfinite(extremes).all())


def wide(tensor: Tensor) -> Tensor:
    """Numbers of eight bits in float32: there are no kernels that look at them."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def copies(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The operands as they are now, where the operation is about to overwrite some of them."""
    if not func._schema.is_mutable:
        return args, kwargs
    writes = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    names = [argument.name for argument in func._schema.arguments]

    def copied(value: Any) -> Any:
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)

    args = tuple(copied(a) if names[i] in writes else a for i, a in enumerate(args))
    return args, {name: copied(value) if name in writes else value for name, value in kwargs.items()}
