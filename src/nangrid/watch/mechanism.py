"""By which of the known mechanisms did it go non-finite? Rules over evidence; without evidence, `unknown`.

The ids are those of MECHANISMS.md. Each rule says what it saw; none fires on a symptom alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from nangrid.records.autopsy import TensorRecord
from nangrid.watch.kinds import DIVIDE_BY_ZERO, INVALID, OVERFLOW
from nangrid.watch.trace import Birth

UNKNOWN = "unknown"
HALF = "float16"
_MASK_SIZE = 0.99
"""An operand this close to the largest number of its dtype is a mask made of finfo.min."""
_RISES = 3
_GROWN = 100.0
"""A largest parameter this many times what it was before training has run away."""


@dataclass(frozen=True)
class Evidence:
    """What the rules look at."""

    step: int
    clock: str
    birth: Birth | None
    op: str
    leaf: str = ""
    """The tensor that was non-finite before the step, if one was."""
    meant_inputs: bool = False
    """Whether the infinities among the operands were meant (a mask)."""
    labels_all_ignored: bool = False
    eps_underflows: list[str] = field(default_factory=list)
    """Optimizer state dtypes in which eps is zero."""
    losses: list[float] = field(default_factory=list)
    """Of the steps before."""
    untrained: bool | None = None
    growth: float = 1.0
    """The largest parameter, by what was the largest before training."""
    zero_rows: bool = False
    """Whether the tokens at the origin enter as rows of zeros."""
    silent_half: bool = False
    """Whether the model is stored in float16 and another dtype was asked for."""


@dataclass(frozen=True)
class Mechanism:
    """An id, in plain words, and what to try first."""

    id: str
    explanation: str
    suggestions: tuple[str, ...] = ()


def name_mechanism(evidence: Evidence) -> Mechanism:
    """The first rule that fires."""
    for rule in _RULES:
        found = rule(evidence)
        if found is not None:
            return found
    return Mechanism(UNKNOWN, "No known mechanism fits the evidence; the origin stands for itself.")


def _uninitialised(e: Evidence) -> Mechanism | None:
    before_training = e.step == 0 and e.leaf.startswith(("parameter ", "buffer "))
    if not before_training and "never written" not in e.leaf:
        return None
    return Mechanism(
        "uninitialised-parameter",
        f"{e.leaf} was non-finite before the first step: it was never initialised, or loaded broken.",
        ("init=mean",),
    )


def _frozen(e: Evidence) -> Mechanism | None:
    if e.clock != "frozen":
        return None
    return Mechanism(
        "infinite-norm-freeze",
        "Every gradient is finite but their norm is not: clipping divides by it, so every update is zero, "
        "the loss stays finite and nothing is learned.",
        ("init=mean", "data.bos=true"),
    )


def _empty_labels(e: Evidence) -> Mechanism | None:
    if not (e.labels_all_ignored and e.birth and e.birth.phase == "forward" and e.birth.kind == INVALID):
        return None
    return Mechanism(
        "empty-labels",
        "Every label of this micro-batch is masked (-100): the loss is a mean over nothing, 0 / 0.",
        ("drop samples whose labels are all -100", "data.length=... longer than the prompts"),
    )


def _dora(e: Evidence) -> Mechanism | None:
    if not e.birth or e.birth.kind == OVERFLOW or "dora" not in e.birth.place.source + e.birth.place.module:
        return None
    return Mechanism("dora-zero-norm", "DoRA divides by the norm of a row that is zero.", ("init=mean",))


def _masked_row(e: Evidence) -> Mechanism | None:
    attends = "softmax" in e.op or "attention" in e.op
    if not (e.birth and attends and e.birth.kind == INVALID and e.meant_inputs):
        return None
    return Mechanism(
        "masked-row-softmax",
        "A row of the attention is masked everywhere: its softmax is exp(-inf) over a sum of zeros, 0 / 0.",
        ("data.padding_side=right", "model.attn=sdpa"),
    )


def _double_mask(e: Evidence) -> Mechanism | None:
    if not (e.birth and e.birth.kind == OVERFLOW and ".add" in e.op and len(e.birth.inputs) == 2):
        return None
    if not e.birth.negative:
        return None
    if not all(_share_of_max(operand) > _MASK_SIZE for operand in e.birth.inputs):
        return None
    return Mechanism(
        "double-mask-overflow",
        "Two masks of the smallest finite number are added: together they are -inf.",
        ("use boolean masks",),
    )


def _log_of_zero(e: Evidence) -> Mechanism | None:
    if not (e.birth and e.birth.kind in (DIVIDE_BY_ZERO, INVALID)):
        return None
    node = e.birth.place.node
    if not ("aten.log" in e.op or (node.startswith(("Log", "Xlogy")) and "Softmax" not in node)):
        return None
    return Mechanism(
        "log-of-zero",
        "A logarithm, or its gradient, is taken at zero (or below).",
        ("take log-probabilities in float32", "use the stable form (log_softmax, logsigmoid, log1p)"),
    )


def _eps_underflow(e: Evidence) -> Mechanism | None:
    if not (e.birth and e.birth.phase == "optimizer" and e.birth.kind != OVERFLOW):
        return None
    if e.birth.output.dtype not in e.eps_underflows:
        return None
    return Mechanism(
        "adam-eps-underflow",
        f"The optimizer's eps is 0 in {e.birth.output.dtype}: an element without gradient is updated by 0 / 0.",
        ("upcast=trainable", "optim=paged_adamw_8bit"),
    )


def _divergence(e: Evidence) -> Mechanism | None:
    if not (e.birth and e.birth.kind == OVERFLOW and e.untrained is False):
        return None
    recent = [loss for loss in e.losses[-_RISES - 1 :] if math.isfinite(loss)]
    rises = len(recent) > _RISES and all(a < b for a, b in pairwise(recent)) and recent[-1] > 2 * min(e.losses)
    if rises:
        seen = f"The loss rose for {_RISES} steps and more before something overflowed"
    elif e.growth > _GROWN:
        seen = f"The largest parameter has grown {e.growth:.3g} times since training began"
    else:
        return None
    return Mechanism(
        "divergence",
        f"{seen}, and the batch is harmless to the initial parameters: training has run away.",
        ("optim.lr=... a tenth", "optim.warmup=10", "optim.clip=1.0"),
    )


def _half_activation(e: Evidence) -> Mechanism | None:
    if not _overflows(e, "forward") or e.birth is None or e.birth.output.dtype != HALF:
        return None
    if e.silent_half:
        return _silent(e)
    return Mechanism(
        "fp16-activation-overflow",
        "An activation passed 65504, the largest float16. float32 and bfloat16 reach 3.4e38.",
        ("dtype=bf16", "dtype=fp32"),
    )


def _half_gradient(e: Evidence) -> Mechanism | None:
    if not _overflows(e, "backward") or e.birth is None or e.birth.output.dtype != HALF:
        return None
    if e.silent_half:
        return _silent(e)
    amplified = " They enter as rows of zeros, where each RMSNorm multiplies the gradient by 1 / sqrt(eps)."
    return Mechanism(
        "fp16-gradient-overflow",
        "A gradient passed 65504, the largest float16, on its way back." + amplified * e.zero_rows,
        ("init=mean", "dtype=bf16") if e.zero_rows else ("dtype=bf16", "dtype=fp32"),
    )


def _zero_row(e: Evidence) -> Mechanism | None:
    if not (_overflows(e, "backward") and e.zero_rows):
        return None
    return Mechanism(
        "zero-row-norm-gradient",
        "The tokens at the origin enter as rows of zeros: each RMSNorm on the way back multiplies the gradient "
        "by 1 / sqrt(eps), about 1000, until it leaves the range of its dtype.",
        ("init=mean", "data.bos=true"),
    )


def _silent(e: Evidence) -> Mechanism:
    return Mechanism(
        "silent-fp16-storage",
        "The model is stored in float16 although another dtype was asked for, and 65504 was passed.",
        ("pass dtype= to from_pretrained",),
    )


def _overflows(e: Evidence, phase: str) -> bool:
    return e.birth is not None and e.birth.phase == phase and e.birth.kind == OVERFLOW


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
