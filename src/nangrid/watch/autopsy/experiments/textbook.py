"""Lists the textbook changes of operations that fail: in words, and as a function of the original function.

A change leaves the elements alone that do not need it, as far as the change of a line can.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nangrid.records import mechanisms

_EPS = 1e-6
_MASK_SIZE = 0.99
"""A number this close to the most negative one of its dtype is taken for a mask."""
Function = Callable[..., Any]
Change = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Cure:
    """A change of one operation: in words, and as a function of the original function and its arguments."""

    words: str
    change: Change
    functions: tuple[str, ...] = ()
    """Names of the torch functions that are changed, and of the operations that they run; empty for all."""


def _before(prepare: Callable[[Tensor], Tensor]) -> Change:
    """A change of the first operand."""
    return lambda func, args, kwargs: func(prepare(args[0]), *args[1:], **kwargs)


def _inside(x: Tensor) -> Tensor:
    edge = 1 - max(_EPS, torch.finfo(x.dtype).eps)
    return x.clamp(-edge, edge)


def _fractional_power(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    exponent = torch.as_tensor(args[1])
    if bool((exponent == exponent.round()).any()):
        raise ValueError("a whole exponent takes negative numbers, which a clamp would change")
    return func(args[0].clamp(min=_EPS), *args[1:], **kwargs)


def _safe_divisor(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    divisor = torch.as_tensor(args[1])
    safe = torch.where(divisor == 0, torch.full_like(divisor, _EPS, dtype=_floating(divisor)), divisor)
    return func(args[0], safe, *args[2:], **kwargs)


def _floating(tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.is_floating_point() else torch.get_default_dtype()


def _safe_softmax(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    masked = (args[0] == -math.inf).all(dim=dim, keepdim=True)
    return func(args[0].masked_fill(masked, 0), *args[1:], **kwargs).masked_fill(masked, 0)


def _in_float32(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    return func(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})


def _by_at_least_one(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    count = torch.as_tensor(args[1])
    return func(args[0], torch.where(count == 0, torch.ones_like(count), count), *args[2:], **kwargs)


def _mean_of_at_least_one(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    mean = func(*args, **kwargs)
    count = args[0].numel() // max(mean.numel(), 1)
    return args[0].sum(*args[1:], **kwargs) / max(count, 1)


def _uncorrected(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = dict(zip(("dim", "unbiased", "keepdim"), args[1:], strict=False)) | kwargs
    if isinstance(given.get("dim"), bool):  # std(unbiased)
        del given["dim"]
    given.pop("unbiased", None)
    return func(args[0], **given | {"correction": 0})


def _is_mask(value: Any) -> bool:
    """Whether this holds the most negative number of its dtype, and no -inf."""
    if not (isinstance(value, Tensor) and value.is_floating_point() and value.numel()):
        return False
    lowest, limit = float(value.detach().min()), torch.finfo(value.dtype).min
    return limit <= lowest < _MASK_SIZE * limit


def _cast_in_range(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    cast = func(*args, **kwargs)
    if not _is_mask(args[0]) or not cast.is_floating_point():
        return cast
    lowest = max(torch.finfo(cast.dtype).min, torch.finfo(args[0].dtype).min)
    return func(args[0].clamp(min=lowest), *args[1:], **kwargs)


def _sum_in_range(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    masks = all(map(_is_mask, args[:2]))
    total = func(*args, **kwargs)
    return total.clamp_(min=torch.finfo(total.dtype).min) if masks else total


def _zero_infinity(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args[:6], **kwargs | {"zero_infinity": True})


def _each(words: str, change: Change, *functions: str) -> list[Cure]:
    """The same change of several functions, of which one at a time is changed."""
    return [Cure(words, change, (function,)) for function in functions]


_CLAMP, _DIVISOR = f"clamp(min={_EPS:g}) before the call", f"{_EPS:g} in place of a divisor of 0"
_INTO_0_1 = _before(lambda x: x.clamp(_EPS, 1 - _EPS))
_DIVISIONS = ("div", "true_divide", "divide", "__truediv__", "__div__", "div_", "__itruediv__", "__idiv__")
_RECIPROCALS = ("reciprocal", "__rdiv__", "__rtruediv__")
_CASTS = ("to_copy", "to", "half", "bfloat16", "type", "type_as")
_SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__")
_FLOAT32 = Cure("compute this operation in float32", _in_float32)

_USUAL = (
    *_each(f"eps={_EPS:g} under the root", _before(lambda x: x.clamp(min=0) + _EPS), "sqrt", "rsqrt"),
    *_each(_CLAMP, _before(lambda x: x.clamp(min=_EPS)), "log", "log2", "log10"),
    Cure(_CLAMP, _fractional_power, ("pow", "__pow__")),
    Cure(f"clamp(min=-1+{_EPS:g}) before the call", _before(lambda x: x.clamp(min=_EPS - 1)), ("log1p",)),
    Cure(f"clamp to {_EPS:g} and 1-{_EPS:g} before the call", _INTO_0_1, ("logit",)),
    *_each("clamp(max=20) before the call", _before(lambda x: x.clamp(max=20.0)), "exp", "expm1", "cosh", "sinh"),
    *_each("clamp the operand to just inside -1 and 1", _before(_inside), "acos", "asin", "atanh", "erfinv"),
    Cure(_DIVISOR, _safe_divisor, _DIVISIONS),
    Cure(_DIVISOR, _before(lambda x: torch.where(x == 0, _EPS, x)), _RECIPROCALS),
    Cure("zeros for rows that are masked everywhere", _safe_softmax, ("softmax",)),
)
"""Whatever the mechanism is."""

_OF_MECHANISMS = {
    mechanisms.MEAN_OVER_NOTHING: (
        Cure("clamp the count to at least 1", _by_at_least_one, _DIVISIONS),
        Cure("clamp the count to at least 1", _mean_of_at_least_one, ("mean",)),
        *_each("pass correction=0", _uncorrected, "std", "var", "std_mean", "var_mean"),
    ),
    mechanisms.MASK_CAST_TO_INFINITY: (
        Cure("the most negative number of the narrower dtype in the mask", _cast_in_range, _CASTS),
    ),
    mechanisms.DOUBLE_MASK_OVERFLOW: (
        Cure("clamp the sum of the masks to the most negative number of its dtype", _sum_in_range, _SUMS),
    ),
    mechanisms.CTC_TARGET_TOO_LONG: (Cure("pass zero_infinity=True to the CTC loss", _zero_infinity, ("ctc_loss",)),),
}
"""Where the mechanism says more than the operation; in the words of its suggestion if that is the same change."""


def cures_of(function: str, mechanism: str, narrow: bool) -> list[Cure]:
    """The changes that fit a failing function.

    `narrow`: whether it computes in half precision, in the forward pass.
    """
    cures = [cure for cure in _OF_MECHANISMS.get(mechanism, ()) if function in cure.functions]
    return cures or [*(cure for cure in _USUAL if function in cure.functions), *[_FLOAT32] * narrow]
