"""Tries the textbook change in the replay: does the step become finite?

The change of an operation is made above autograd, so that the gradient is that of the changed line. Operations are told
by their name and the source line that called them.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

from torch.overrides import TorchFunctionMode

from nangrid.records.autopsy import Trial
from nangrid.records.mechanisms import NONFINITE_DATA, NONFINITE_LEARNING_RATE
from nangrid.watch.autopsy.experiments.ablation import with_zeros
from nangrid.watch.autopsy.experiments.textbook import Cure, cures_of
from nangrid.watch.autopsy.places import source_line
from nangrid.watch.autopsy.producer import Producer
from nangrid.watch.autopsy.replay import Step, rerun
from nangrid.watch.autopsy.trace import Write
from nangrid.watch.state.snapshot import Snapshot

_LARGER_EPS = 1e-4
_OF_NODES = {"Pow": "pow", "Log1P": "log1p", "Div": "div"}
"""Autograd nodes whose function is not their name in lower case."""


class _Changed(TorchFunctionMode):
    """Calls changed functions in place of those that one source line calls."""

    def __init__(self, source: str, cure: Cure) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.source, self.cure = source, cure
        self.changed = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        fits = not self.cure.functions or getattr(func, "__name__", "") in self.cure.functions
        if not fits or source_line(sys._getframe(1)) != self.source:
            return func(*args, **kwargs)
        self.changed += 1
        return self.cure.change(func, args, kwargs)


def tried_cures(step: Step, snapshot: Snapshot, write: Write, mechanism: str) -> list[Trial]:
    """Each change that fits the failing operation, or what it read, and whether the step is finite with it."""
    producer = write.producer
    if mechanism == NONFINITE_DATA:
        return _with_filled_data(step, snapshot, write.preexisting)
    if mechanism == NONFINITE_LEARNING_RATE:
        return _with_first_rates(step, snapshot)
    if producer is None:
        return []
    if producer.phase == "optimizer":
        return _with_larger_eps(step, snapshot)
    narrow = producer.output.dtype in ("float16", "bfloat16") and producer.phase == "forward"
    cures = cures_of(_function(producer, write.op), mechanism, narrow)
    return [trial for cure in cures for trial in _tried(step, snapshot, producer.place.source, cure)]


def _function(producer: Producer, op: str) -> str:
    """The torch function that the failing operation belongs to; in the backward pass that of the autograd node."""
    if producer.phase == "forward":
        return op.removeprefix("aten.").split(".")[0].strip("_")
    node = producer.place.node.split("Backward")[0]
    return _OF_NODES.get(node, node.lower())


def _tried(step: Step, snapshot: Snapshot, source: str, cure: Cure) -> list[Trial]:
    mode = _Changed(source, cure)
    try:
        clock = rerun(step, snapshot, mode).clock
    except Exception:  # the change may not fit the operands, or the rest of the step
        return []
    return [Trial(f"at {source}: {cure.words}", clock is None)] if mode.changed else []


def _with_larger_eps(step: Step, snapshot: Snapshot) -> list[Trial]:
    eps = {"eps": _LARGER_EPS}
    groups = [group | (eps if isinstance(group.get("eps"), float | int) else {}) for group in snapshot.groups]
    return _with_groups(step, snapshot, groups, f"eps={_LARGER_EPS:g} in the optimizer")


def _with_first_rates(step: Step, snapshot: Snapshot) -> list[Trial]:
    """With the learning rate that a schedule began with, where the present one is not finite."""
    groups, rates = [], []
    for group in snapshot.groups:
        if "initial_lr" in group and not math.isfinite(group["lr"]):
            rates.append(f"{float(group['initial_lr']):g}")
            group = group | {"lr": group["initial_lr"]}
        groups.append(group)
    return _with_groups(step, snapshot, groups, f"lr={', '.join(rates)}, with which the schedule began")


def _with_groups(step: Step, snapshot: Snapshot, groups: list[dict[str, Any]], words: str) -> list[Trial]:
    if groups == snapshot.groups:
        return []
    return [Trial(words, rerun(step, replace(snapshot, groups=groups)).clock is None)]


def _with_filled_data(step: Step, snapshot: Snapshot, preexisting: str) -> list[Trial]:
    filled = with_zeros(snapshot, preexisting)
    if filled is None:
        return []
    return [Trial(f"0 in place of what is non-finite in {preexisting}", rerun(step, filled).clock is None)]
