"""Measures where the first non-finite numbers of a step arise, by torch's own hooks and `isfinite` alone."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.fx.traceback
from case import base_op
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HERE = Path(__file__).resolve().parent
ALLOCATES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
FILLS = {"fill", "masked_fill", "index_fill", "full", "full_like", "new_full", "scalar_tensor", "constant_pad_nd"}
"""Operations whose infinite scalar is intentional, as in a mask."""
OVERWRITES = {"copy", "fill", "zero", "normal", "uniform", "bernoulli"}
POLES: dict[str, tuple[int, tuple[float, ...]]] = {
    "div": (1, (0.0,)),
    "_foreach_div": (1, (0.0,)),
    "reciprocal": (0, (0.0,)),
    "rsqrt": (0, (0.0,)),
    "log": (0, (0.0,)),
    "log2": (0, (0.0,)),
    "log1p": (0, (-1.0,)),
    "pow": (0, (0.0,)),
    "atanh": (0, (1.0, -1.0)),
    "logit": (0, (0.0, 1.0)),
    "xlogy": (1, (0.0,)),
    "addcdiv": (2, (0.0,)),
    "erfinv": (0, (1.0, -1.0)),
    "lgamma": (0, (0.0,)),
}
"""Operation -> the operand that has a pole, and where."""


def is_bad(value: object) -> bool:
    """Whether this is a floating-point tensor with a NaN or an infinity."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.numel() > 0
        and not bool(torch.isfinite(value).all())
    )


def has_nan(value: Tensor) -> bool:
    return bool(torch.isnan(value).any())


@cache
def is_script(path: str) -> bool:
    """Whether a file holds cases: it lies in a folder of the bank."""
    return Path(path).resolve().parent.parent == HERE


@dataclass
class Finding:
    """An operation with a non-finite result whose operands were finite, or held no NaN where the result does."""

    op: str
    phase: str
    kind: str
    line: str
    node: str
    module: str
    strict: bool
    """Whether all operands were finite."""

    def __str__(self) -> str:
        place = f"{self.module or '(no module)'} at {self.line} {self.node}"
        return f"{self.phase} {self.kind} {self.op} in {place}" + " (first NaN)" * (not self.strict)


class Observer(TorchDispatchMode):
    """Collects the findings of one step; replaces the results that `replaces` selects by finite numbers."""

    def __init__(
        self, model: nn.Module, replaces: Callable[[Finding], bool] = lambda finding: False, filler: float = 0.0
    ) -> None:
        super().__init__()
        self.names = {id(module): name for name, module in model.named_modules()}
        self.replaces = replaces
        self.filler = filler
        self.optimizing = False
        self.findings: list[Finding] = []
        self._stack: list[str] = []
        self._made: set[int] = set()
        self._alive: list[Tensor] = []

    def enter(self, module: nn.Module, args: object) -> None:
        self._stack.append(self.names.get(id(module), type(module).__name__))

    def leave(self, module: nn.Module, args: object, output: object) -> None:
        self._stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = base_op(str(func))
        phase, line, node, module = self._place()
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if name in OVERWRITES and func._schema.is_mutable:
            inputs = inputs[1:]
        bad = [value for value in inputs if is_bad(value)]
        read = bool(bad) and all(value.untyped_storage()._cdata not in self._made for value in bad)
        nan_in = any(has_nan(value) for value in bad)
        before = [a.clone() if isinstance(a, Tensor) and func._schema.is_mutable else a for a in args]
        result = func(*args, **kwargs)
        outputs = _bad_outputs(func, name, args, result)
        if not outputs:
            return result
        strict = not bad or read
        intentional = not bad and name in FILLS and _has_infinite_scalar(args, kwargs)
        if not intentional and (strict or (not nan_in and any(map(has_nan, outputs)))):
            kind = "nonfinite_input" if read else kind_of(name, before, outputs[0])
            finding = Finding(name, "input" if read else phase, kind, line, node, module, strict)
            if self.replaces(finding):
                for value in outputs:
                    value.detach().nan_to_num_(self.filler, self.filler, self.filler)
                return result
            self.findings.append(finding)
        self._alive += outputs  # so that no storage's address is used again
        self._made |= {value.untyped_storage()._cdata for value in outputs}
        return result

    def note(self) -> list[str]:
        """What anomaly mode stores on a new autograd node: the innermost module and the script's line."""
        return [f"{self._innermost()}\t{_frame_line()}"]

    def _place(self) -> tuple[str, str, str, str]:
        """Phase, line, autograd node and module of the operation that is running."""
        node = torch._C._current_autograd_node()
        if self.optimizing:
            return "optimizer", _frame_line("optim"), "", ""
        if node is not None and not self._stack:
            module, _, line = next(iter(node.metadata.get("traceback_", [])), "\t").partition("\t")
            return "backward", line, node.name(), module
        return "forward", _frame_line(), "", self._innermost()

    def _innermost(self) -> str:
        return self._stack[-1] if self._stack else ""


def _bad_outputs(func: Any, name: str, args: Any, result: Any) -> list[Tensor]:
    """The results that an operation has computed, and that are not finite."""
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    if name in ALLOCATES or views:
        return []
    # _foreach_*_ return nothing and write their first argument.
    written = result if func._schema.returns else args[:1]
    return [value for value in tree_leaves(written) if is_bad(value)]


def _has_infinite_scalar(args: Any, kwargs: Any) -> bool:
    scalars = [value for value in tree_leaves((args, kwargs)) if isinstance(value, float)]
    return any(not math.isfinite(value) for value in scalars)


def _frame_line(folder: str = "") -> str:
    """The innermost line of a case's script, or of a file in `folder`."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if is_script(path) or (folder and Path(path).parent.name == folder):
            return f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def kind_of(name: str, before: list[Any], out: Tensor) -> str:
    """IEEE 754's name for the exception: invalid, divide_by_zero or overflow."""
    if has_nan(out):
        return "invalid"
    if name in POLES:
        position, poles = POLES[name]
        first = int((~torch.isfinite(out)).flatten().nonzero()[0])
        operand = torch.as_tensor(before[position] if position < len(before) else math.nan, dtype=torch.float64)
        if float(operand.broadcast_to(out.shape).flatten()[first]) in poles:
            return "divide_by_zero"
    return "overflow"


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Within the block, the observer sees every operation, module call and autograd node."""
    hooks = [
        module_hooks.register_module_forward_pre_hook(observer.enter),
        module_hooks.register_module_forward_hook(observer.leave, always_call=True),
    ]
    original = torch.fx.traceback.format_stack
    torch.fx.traceback.format_stack = observer.note
    try:
        with torch.autograd.set_detect_anomaly(True, check_nan=False), observer:
            yield
    finally:
        torch.fx.traceback.format_stack = original
        for hook in hooks:
            hook.remove()
