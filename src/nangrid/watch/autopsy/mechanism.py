"""Names the mechanism of a failure by rules over the evidence; `unknown` if none applies.

The ids are in nangrid.records.mechanisms. Each rule explains what it saw; none fires on a symptom alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from nangrid.records import mechanisms
from nangrid.records.autopsy import Suggestion, TensorRecord
from nangrid.watch.autopsy.ieee import DIVIDE_BY_ZERO, INVALID, OVERFLOW
from nangrid.watch.autopsy.trace import Producer

HALF = "float16"
_MASK_SIZE = 0.99
"""An operand this close to the largest number of its dtype is taken for a mask of finfo.min."""
_RISES = 3
_GROWN = 100.0
"""If the largest parameter grew this many times during training, training has diverged."""
_LOST = 0.1
"""The loss must also have regained this share of what it had fallen: parameters may grow while it still falls."""
_LOGARITHM = re.compile(r"aten\.(log|log2|log10|log1p|logit|xlogy|xlog1py)_?\.")
_LOGARITHM_NODE = re.compile(r"(Log|Log2|Log10|Log1P|Logit|Xlogy|Xlog1Py)Backward", re.IGNORECASE)
_STABLE = {
    "log1p": "use log(-expm1(x)) instead of log1p(-exp(x)) for x < 0",
    "logit": "use the sigmoid's input instead of the logit of its output",
}
"""Advice for operations to which the usual advice does not apply."""


@dataclass(frozen=True)
class Evidence:
    """What the rules are applied to."""

    step: int
    clock: str
    producer: Producer | None
    op: str
    preexisting: str = ""
    """The tensor that was non-finite before the step; empty if none was."""
    labels_all_ignored: bool = False
    eps_underflows: list[str] = field(default_factory=list)
    """Dtypes of trained parameters in which the optimizer's eps rounds to zero."""
    losses: list[float] = field(default_factory=list)
    """Losses of the steps before."""
    untrained: bool | None = None
    growth: float = 1.0
    """The largest |parameter| now, divided by the largest before training."""
    norms: bool = False
    """Whether the model has a normalisation layer."""
    zero_rows: bool = False
    """Whether the embedding rows of the tokens at the origin are all zero."""
    silent_half: bool = False
    """Whether a dtype other than float16 was requested: float16 storage is then a silent cast."""


@dataclass(frozen=True)
class Mechanism:
    """The id of a mechanism, its explanation in plain words, and what to try first."""

    id: str
    explanation: str
    suggestions: tuple[Suggestion, ...] = ()


def _overrides(*overrides: str) -> tuple[Suggestion, ...]:
    return tuple(Suggestion(override, override) for override in overrides)


def _advice(*advice: str) -> tuple[Suggestion, ...]:
    return tuple(Suggestion(text) for text in advice)


def name_mechanism(evidence: Evidence) -> Mechanism:
    """The mechanism of the first rule that fires."""
    for rule in _RULES:
        mechanism = rule(evidence)
        if mechanism is not None:
            return mechanism
    return Mechanism(mechanisms.UNKNOWN, "No known mechanism matches the evidence; start from the origin.")


def _uninitialised(e: Evidence) -> Mechanism | None:
    before_training = e.step == 0 and e.preexisting.startswith(("parameter ", "buffer "))
    if not before_training and "never written" not in e.preexisting:
        return None
    reason = "was non-finite before the first step: it was never initialised, or its checkpoint is damaged."
    if not before_training:
        reason = "was read before anything was written to it, and held arbitrary numbers."
    return Mechanism(
        mechanisms.UNINITIALISED_PARAMETER,
        f"{e.preexisting} {reason}",
        _overrides("init=mean"),
    )


def _frozen(e: Evidence) -> Mechanism | None:
    if e.clock != "frozen":
        return None
    return Mechanism(
        mechanisms.INFINITE_NORM_FREEZE,
        "Every gradient is finite, but their norm is inf. Clipping divides by the norm, so every update is zero: "
        "the loss stays finite and the model learns nothing.",
        _overrides("init=mean", "data.bos=true"),
    )


def _empty_labels(e: Evidence) -> Mechanism | None:
    if not (
        e.producer
        and e.producer.phase == "forward"
        and e.producer.kind == INVALID
        and _is_mean_of_nothing(e, e.producer)
    ):
        return None
    return Mechanism(
        mechanisms.EMPTY_LABELS,
        "Every label of this micro-batch is ignored (such as -100) or has weight 0. The loss is a mean over no "
        "labels, 0 / 0.",
        _advice("drop samples whose labels are all -100", "set data.length= above the longest prompt"),
    )


def _is_mean_of_nothing(e: Evidence, producer: Producer) -> bool:
    if "nll_loss" in e.op:  # finite operands: only its own division by the weights' sum is left
        return e.labels_all_ignored or not any(operand.n_nan or operand.n_inf for operand in producer.inputs)
    if "aten.div" in e.op and len(producer.output.shape) <= 1:
        return e.labels_all_ignored and bool(producer.inputs) and all(operand.at == 0 for operand in producer.inputs)
    return e.labels_all_ignored and "aten.mean" in e.op and not producer.inputs


def _dora(e: Evidence) -> Mechanism | None:
    if not e.producer or e.producer.kind == OVERFLOW:
        return None
    if not (e.producer.place.source.startswith("dora.py:") or "lora_magnitude_vector" in e.producer.place.module):
        return None
    return Mechanism(
        mechanisms.DORA_ZERO_NORM,
        "DoRA divides by the norm of a row that is all zeros.",
        _overrides("init=mean"),
    )


def _masked_row(e: Evidence) -> Mechanism | None:
    if not (e.producer and e.producer.kind == INVALID and e.producer.masked):
        return None
    # Written out by hand, a softmax is exp(x - max): -inf - -inf is a subtraction.
    attends = any("attention" in name or "attn" in name for name in (e.op, e.producer.place.module.lower()))
    if not any(name in e.op for name in ("softmax", "attention", *(["aten.sub"] if attends else []))):
        return None
    return Mechanism(
        mechanisms.MASKED_ROW_SOFTMAX,
        f"{'An attention row' if attends else 'A row of logits'} is masked everywhere (all -inf), so its softmax "
        "is 0 / 0.",
        _overrides("data.padding_side=right", "model.attn=sdpa")
        if attends
        else _advice("drop the rows that are masked everywhere"),
    )


def _double_mask(e: Evidence) -> Mechanism | None:
    if not (e.producer and e.producer.kind == OVERFLOW and ".add" in e.op and len(e.producer.inputs) == 2):
        return None
    if not e.producer.negative:
        return None
    if not all(_share_of_max(operand) > _MASK_SIZE for operand in e.producer.inputs):
        return None
    return Mechanism(
        mechanisms.DOUBLE_MASK_OVERFLOW,
        "Two masks filled with the most negative finite number are added, and the sum overflows to -inf.",
        _advice("use boolean masks"),
    )


def _log_of_zero(e: Evidence) -> Mechanism | None:
    if not (e.producer and (e.producer.kind in (DIVIDE_BY_ZERO, INVALID) or _is_slope_near_zero(e.producer))):
        return None
    forward, backward = _LOGARITHM.match(e.op), _LOGARITHM_NODE.match(e.producer.place.node)
    if not (forward or backward):
        return None
    name = (e.op + e.producer.place.node).lower()
    usual = "use a stable form: log_softmax, logsigmoid or log1p"
    stable = next((advice for part, advice in _STABLE.items() if part in name), usual)
    return Mechanism(
        mechanisms.LOG_OF_ZERO,
        "A logarithm or its gradient is evaluated at zero, below zero, or too close to zero to be finite.",
        _advice("compute log-probabilities in float32", stable),
    )


def _is_slope_near_zero(producer: Producer) -> bool:
    """Whether 1 / x overflowed because x is subnormal; float16 has rules of its own further down."""
    divisor = producer.inputs[-1] if producer.inputs else None
    if producer.phase != "backward" or divisor is None or divisor.at is None or divisor.dtype == HALF:
        return False
    return producer.kind == OVERFLOW and abs(divisor.at) < torch.finfo(getattr(torch, divisor.dtype)).tiny


def _eps_underflow(e: Evidence) -> Mechanism | None:
    if not (e.producer and e.producer.phase == "optimizer" and e.producer.kind in (INVALID, DIVIDE_BY_ZERO)):
        return None
    divides = any(name in e.op for name in ("div", "reciprocal"))  # the divisor is the last operand
    if not (
        divides and e.producer.inputs and e.producer.inputs[-1].at == 0 and e.producer.output.dtype in e.eps_underflows
    ):
        return None
    return Mechanism(
        mechanisms.ADAM_EPS_UNDERFLOW,
        f"The optimizer's eps rounds to 0 in {e.producer.output.dtype}, so an element that never had a gradient is "
        "updated by 0 / 0.",
        _overrides("upcast=trainable", "optim=paged_adamw_8bit"),
    )


def _divergence(e: Evidence) -> Mechanism | None:
    # A batch that also fails on the untrained weights rules out training dynamics.
    if not (e.producer and e.producer.kind == OVERFLOW and e.untrained is False):
        return None
    losses = [loss for loss in e.losses if math.isfinite(loss)]
    recent = losses[-_RISES - 1 :]
    lowest = min(losses, default=0.0)
    rise = losses[-1] - lowest if losses else 0.0
    rises = len(recent) > _RISES and all(a < b for a, b in pairwise(recent)) and rise > abs(lowest)
    huge = any(operand.absmax > math.sqrt(dtype_max("float32")) for operand in e.producer.inputs)
    if rises:
        sign = f"The loss rose for at least {_RISES} steps before the overflow"
    elif e.growth > _GROWN and (huge or (losses and rise > _LOST * (losses[0] - lowest))):
        sign = f"The largest parameter has grown by a factor of {e.growth:.3g} since training began"
    else:
        return None
    return Mechanism(
        mechanisms.DIVERGENCE,
        f"{sign}, and the same batch is finite on the untrained weights: training has diverged.",
        (*_advice("lower optim.lr= to a tenth"), *_overrides("optim.warmup=10", "optim.clip=1.0")),
    )


def _half_activation(e: Evidence) -> Mechanism | None:
    if not _overflows(e, "forward") or e.producer is None or e.producer.output.dtype != HALF:
        return None
    if e.silent_half:
        return _silent(e)
    return Mechanism(
        mechanisms.FP16_ACTIVATION_OVERFLOW,
        "An activation exceeded 65504, the largest float16 number. bfloat16 and float32 reach 3.4e38.",
        _overrides("dtype=bf16", "dtype=fp32"),
    )


def _half_gradient(e: Evidence) -> Mechanism | None:
    if not _overflows(e, "backward") or e.producer is None or e.producer.output.dtype != HALF:
        return None
    if e.silent_half:
        return _silent(e)
    amplifies = e.zero_rows and e.norms
    amplified = (
        " The embedding rows of the tokens at the origin are all zero, and each norm layer multiplies the gradient of "
        "such a row by 1 / sqrt(eps)."
    )
    return Mechanism(
        mechanisms.FP16_GRADIENT_OVERFLOW,
        "A gradient exceeded 65504, the largest float16 number, in the backward pass." + amplified * amplifies,
        _overrides("init=mean", "dtype=bf16") if amplifies else _overrides("dtype=bf16", "dtype=fp32"),
    )


def _zero_row(e: Evidence) -> Mechanism | None:
    if not (_overflows(e, "backward") and e.zero_rows and e.norms):
        return None
    return Mechanism(
        mechanisms.ZERO_ROW_NORM_GRADIENT,
        "The embedding rows of the tokens at the origin are all zero. In the backward pass each norm layer multiplies "
        "the gradient of such a row by 1 / sqrt(eps), often about 1000, until it overflows.",
        _overrides("init=mean", "data.bos=true"),
    )


def _silent(e: Evidence) -> Mechanism:
    return Mechanism(
        mechanisms.SILENT_FP16_STORAGE,
        "The model is stored in float16 although another dtype was requested, and a value exceeded 65504, the largest "
        "float16 number.",
        _advice("pass dtype= to from_pretrained"),
    )


def _overflows(e: Evidence, phase: str) -> bool:
    return e.producer is not None and e.producer.phase == phase and e.producer.kind == OVERFLOW


def _share_of_max(operand: TensorRecord) -> float:
    return operand.absmax / dtype_max(operand.dtype)


def dtype_max(name: str) -> float:
    """The largest finite number of a floating-point dtype."""
    return float(torch.finfo(getattr(torch, name)).max)


_RULES: tuple[Callable[[Evidence], Mechanism | None], ...] = (
    _uninitialised,
    _frozen,
    _empty_labels,
    _dora,
    _masked_row,
    _double_mask,
    _log_of_zero,
    _eps_underflow,
    _divergence,
    _half_activation,
    _half_gradient,
    _zero_row,
)
