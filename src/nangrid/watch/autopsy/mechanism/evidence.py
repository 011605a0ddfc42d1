"""Defines what the rules are applied to, and what a rule that fires returns."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import dropwhile

import torch

from nangrid.records.autopsy import TensorRecord
from nangrid.watch.autopsy.ieee import DIVIDE_BY_ZERO, INVALID, OVERFLOW
from nangrid.watch.autopsy.lineage import LONGEST, Lineage
from nangrid.watch.autopsy.producer import Operand, Producer

HALF = "float16"


@dataclass(frozen=True)
class Evidence:
    """What the rules are applied to."""

    step: int
    clock: str
    producer: Producer | None
    op: str
    preexisting: str = ""
    """The tensor that was non-finite before the step; empty if none was."""
    preexisting_elements: str = ""
    """Which of its elements are, if they are still known."""
    unlabelled: str = ""
    """The batch's tensor of labels or of their mask that selects nothing, such as `labels`; empty if none is so."""
    optimizer: str = ""
    """The class of the optimizer."""
    eps_underflows: list[str] = field(default_factory=list)
    """Dtypes of trained parameters in which the optimizer's eps is zero or rounds to zero."""
    nonfinite_lr: float | None = None
    """The learning rate of a group, if it is not finite."""
    losses: list[float] = field(default_factory=list)
    """Losses of the steps before."""
    untrained: bool | None = None
    growth: float = 1.0
    """The largest |parameter| now, divided by the largest before training."""
    norms: bool = False
    """Whether the model has a normalisation layer."""
    zero_rows: bool = False
    """Whether the embedding rows of the tokens at the origin are all zero."""
    new_rows: bool = False
    """Whether the embedding rows of new tokens are what fails: `init=` chooses other ones."""
    silent_half: bool = False
    """Whether a dtype other than float16 was requested: float16 storage is then a silent cast."""


@dataclass(frozen=True)
class Mechanism:
    """The id of a mechanism, its explanation in plain words, and what to try first."""

    id: str
    explanation: str
    overrides: tuple[str, ...] = ()
    """For a cell: `key=value` of the command line, the one that cured most cells of docs/studies first."""
    changes: tuple[str, ...] = ()
    """For a script, or where no override helps: what to change in the line of the origin."""
    advice: tuple[str, ...] = ()
    """As `changes`, but elsewhere."""


def producer_of(e: Evidence, phase: str, *kinds: str) -> Producer | None:
    """The producer, if it belongs to this phase and made one of these kinds of number."""
    return e.producer if e.producer and e.producer.phase == phase and e.producer.kind in kinds else None


def overflows(e: Evidence, phase: str) -> bool:
    """Whether the origin is an overflow in this phase."""
    return producer_of(e, phase, OVERFLOW) is not None


def is_operation(op: str, *names: str) -> bool:
    """Whether `op`, such as `aten.log_.default`, is one of these operations, in place or not."""
    return op.removeprefix("aten.").split(".")[0].removesuffix("_") in names


def divisor_of(e: Evidence) -> Operand | None:
    """What the origin divides by or takes the reciprocal of, if it divides."""
    if e.producer is None:
        return None
    if is_operation(e.op, "div", "_foreach_div"):
        return e.producer.operand("other")
    if is_operation(e.op, "addcdiv", "_foreach_addcdiv"):
        return e.producer.operand("tensor2")
    if is_operation(e.op, "reciprocal", "rsqrt", "_foreach_reciprocal", "_foreach_rsqrt"):
        return e.producer.operand("self")
    exponent = e.producer.operand("exponent")
    if is_operation(e.op, "pow") and exponent and exponent.record.at is not None and exponent.record.at < 0:
        return e.producer.operand("self")
    return None


def divides_by_zero(e: Evidence, phase: str) -> Operand | None:
    """The divisor, if the origin divides by an element that is exactly zero in this phase."""
    divisor = divisor_of(e) if producer_of(e, phase, DIVIDE_BY_ZERO, INVALID) else None
    return divisor if divisor and divisor.record.at == 0 else None


def came_from(lineage: Lineage, *patterns: str) -> bool:
    """Whether the last operations that computed a tensor match these patterns, the last one first.

    Copies, casts and changes of shape in between do not count.
    """
    names = [name for name in lineage if not re.fullmatch(_CARRIES, name)]
    return len(names) >= len(patterns) and all(re.fullmatch(p, name) for p, name in zip(patterns, names, strict=False))


def unguarded(lineage: Lineage) -> Lineage:
    """The lineage before a guard against zero, such as `+ eps` or `clamp(min=eps)` with an eps that rounds to zero."""
    return tuple(dropwhile(lambda name: re.fullmatch(rf"add|clamp|clamp_min|maximum|{_CARRIES}", name), lineage))


def is_sum_of(divisor: Lineage, numerator: Lineage) -> bool:
    """Whether the divisor is the sum of what is divided; a tensor that was only read tells nothing."""
    return bool(numerator) and divisor[:1] == ("sum",) and divisor[1:] == numerator[: LONGEST - 1]


_CARRIES = r"_to_copy|clone|copy|expand|repeat|cat|stack|index|index_select|select|slice|gather|lift_fresh|view|reshape"


def share_of_max(operand: TensorRecord) -> float:
    """The operand's largest element, as a share of the largest number of its dtype."""
    return operand.absmax / dtype_max(operand.dtype)


def dtype_max(name: str) -> float:
    """The largest finite number of a floating-point dtype."""
    return float(torch.finfo(getattr(torch, name)).max)
