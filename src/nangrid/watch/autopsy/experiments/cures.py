"""Tries the textbook change of the failing operation in the replay: does the step become finite?

The change is made above autograd, so that the gradient is that of the changed line. Operations are told by their name
and the source line that called them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nangrid.records.autopsy import Trial
from nangrid.watch.autopsy.places import source_line
from nangrid.watch.autopsy.producer import Producer
from nangrid.watch.autopsy.replay import Step, rerun
from nangrid.watch.state.snapshot import Snapshot

_EPS = 1e-6
_LARGER_EPS = 1e-4
Function = Callable[..., Any]


@dataclass(frozen=True)
class Cure:
    """A change of one operation: in words, and as a function of the original function and its arguments."""

    words: str
    change: Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]


def _before(words: str, prepare: Callable[[Tensor], Tensor]) -> Cure:
    """A change of the first operand."""
    return Cure(words, lambda func, args, kwargs: func(prepare(args[0]), *args[1:], **kwargs))


def _inside(limit: float) -> Cure:
    def prepare(x: Tensor) -> Tensor:
        edge = limit - max(_EPS, torch.finfo(x.dtype).eps)
        return x.clamp(-edge, edge)

    return _before(f"clamp the operand to just inside -{limit:g} and {limit:g}", prepare)


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


_EPS_UNDER = _before(f"eps={_EPS:g} under the root", lambda x: x.clamp(min=0) + _EPS)
_CLAMP = _before(f"clamp(min={_EPS:g}) before the call", lambda x: x.clamp(min=_EPS))
_BOUND = _before("clamp(max=20) before the call", lambda x: x.clamp(max=20.0))
_DIVISOR = Cure(f"{_EPS:g} in place of a divisor of 0", _safe_divisor)
_ROWS = Cure("zeros for rows that are masked everywhere", _safe_softmax)
_FLOAT32 = Cure("compute this operation in float32", _in_float32)

_CURES: dict[str, Cure] = {
    "sqrt": _EPS_UNDER, "rsqrt": _EPS_UNDER, "log": _CLAMP, "log2": _CLAMP, "log10": _CLAMP, "pow": _CLAMP,
    "__pow__": _CLAMP, "log1p": _before(f"clamp(min=-1+{_EPS:g}) before the call", lambda x: x.clamp(min=_EPS - 1)),
    "reciprocal": _CLAMP, "exp": _BOUND, "expm1": _BOUND, "cosh": _BOUND, "sinh": _BOUND, "acos": _inside(1.0),
    "asin": _inside(1.0), "atanh": _inside(1.0), "erfinv": _inside(1.0),
    "logit": _before(f"clamp to {_EPS:g} and 1-{_EPS:g} before the call", lambda x: x.clamp(_EPS, 1 - _EPS)),
    "div": _DIVISOR, "true_divide": _DIVISOR, "__truediv__": _DIVISOR, "__div__": _DIVISOR, "divide": _DIVISOR,
    "softmax": _ROWS,
}  # fmt: skip
"""By the name of the torch function."""
_OF_NODES = {"Pow": "pow", "Log1P": "log1p", "Div": "div"}
"""Autograd nodes whose function is not their name in lower case."""


class _Changed(TorchFunctionMode):
    """Calls changed functions in place of those that one source line calls."""

    def __init__(self, source: str, cures: dict[str, Cure]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.source, self.cures = source, cures
        self.changed = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        cure = self.cures.get(getattr(func, "__name__", ""), self.cures.get(""))
        if cure is None or source_line(sys._getframe(1)) != self.source:
            return func(*args, **kwargs)
        self.changed += 1
        return cure.change(func, args, kwargs)


def tried_cures(step: Step, snapshot: Snapshot, producer: Producer, op: str) -> list[Trial]:
    """Each change that fits the failing operation, and whether the step is finite with it."""
    if producer.phase == "optimizer":
        return _with_larger_eps(step, snapshot)
    name = _function(producer, op)
    trials = []
    if name in _CURES:
        same = {key: cure for key, cure in _CURES.items() if cure is _CURES[name]}
        trials += _tried(step, snapshot, producer, same, f"at {producer.place.source}: {_CURES[name].words}")
    if producer.output.dtype in ("float16", "bfloat16") and producer.phase == "forward":
        words = f"at {producer.place.source}: {_FLOAT32.words}"
        trials += _tried(step, snapshot, producer, {"": _FLOAT32}, words)
    return trials


def _function(producer: Producer, op: str) -> str:
    """The torch function that the failing operation belongs to; in the backward pass that of the autograd node."""
    if producer.phase == "forward":
        return op.removeprefix("aten.").split(".")[0].strip("_")
    node = producer.place.node.split("Backward")[0]
    return _OF_NODES.get(node, node.lower())


def _tried(step: Step, snapshot: Snapshot, producer: Producer, cures: dict[str, Cure], words: str) -> list[Trial]:
    mode = _Changed(producer.place.source, cures)
    try:
        clock = rerun(step, snapshot, mode).clock
    except Exception:  # the changed operation may not fit the rest of the step
        return []
    return [Trial(words, clock is None)] if mode.changed else []


def _with_larger_eps(step: Step, snapshot: Snapshot) -> list[Trial]:
    groups = [
        group | ({"eps": _LARGER_EPS} if isinstance(group.get("eps"), float | int) else {}) for group in snapshot.groups
    ]
    if groups == snapshot.groups:
        return []
    clock = rerun(step, replace(snapshot, groups=groups)).clock
    return [Trial(f"eps={_LARGER_EPS:g} in the optimizer", clock is None)]
