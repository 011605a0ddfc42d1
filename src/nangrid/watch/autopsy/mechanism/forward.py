"""Rules about operations of the forward pass."""

from __future__ import annotations

import math

from nangrid.records import mechanisms
from nangrid.watch.autopsy.ieee import DIVIDE_BY_ZERO, INVALID, OVERFLOW
from nangrid.watch.autopsy.mechanism.evidence import (
    HALF,
    Evidence,
    Mechanism,
    came_from,
    divides_by_zero,
    dtype_max,
    is_operation,
    is_sum_of,
    overflows,
    producer_of,
    share_of_max,
    unguarded,
)
from nangrid.watch.autopsy.producer import Producer

_MASK_SIZE = 0.99
"""An operand this close to the largest number of its dtype is taken for a mask of finfo.min."""
_COUNT = "bool|int|sum"
"""What is counted, in a lineage."""
_SCALE = "std|var|std_mean|var_mean|linalg_vector_norm|norm|amax|max|amin"
_SPREADS = ("std", "var", "std_mean", "var_mean")
_EXPONENTIALS = ("exp", "expm1", "exp2", "cosh", "sinh")
_DOMAINS = {
    "acos": "between -1 and 1", "asin": "between -1 and 1", "atanh": "between -1 and 1", "acosh": "1 or more",
    "sqrt": "0 or more", "rsqrt": "more than 0", "erfinv": "between -1 and 1", "pow": "0 or more for this exponent",
}  # fmt: skip
"""Functions that are not defined everywhere, and where they are."""
_INFINITE_AT_THE_EDGE = ("atanh", "erfinv")


def empty_labels(e: Evidence) -> Mechanism | None:
    """A loss that is a mean over no labels."""
    if not producer_of(e, "forward", INVALID) or not _is_mean_of_no_labels(e):
        return None
    which = f" (`{e.unlabelled}` selects none)" if e.unlabelled else ""
    return Mechanism(
        mechanisms.EMPTY_LABELS,
        f"Every label of this micro-batch is ignored (such as -100) or has weight 0{which}. The loss is a mean over no "
        "labels, 0 / 0.",
        advice=("drop samples whose labels are all ignored", "allow samples longer than the longest prompt"),
    )


def _is_mean_of_no_labels(e: Evidence) -> bool:
    producer = e.producer
    if producer is None:
        return False
    if "nll_loss" in e.op:  # finite operands: only its own division by the weights' sum is left
        return bool(e.unlabelled) or not any(operand.n_nan or operand.n_inf for operand in producer.tensors)
    if is_operation(e.op, "div") and len(producer.output.shape) <= 1:
        return bool(e.unlabelled) and bool(producer.inputs) and all(operand.at == 0 for operand in producer.inputs)
    return bool(e.unlabelled) and is_operation(e.op, "mean") and not producer.inputs


def mean_over_nothing(e: Evidence) -> Mechanism | None:
    """A mean, or a spread, over no elements that are not labels."""
    what = _nothing(e, producer) if (producer := producer_of(e, "forward", INVALID)) else ""
    if not what:
        return None
    spreads = is_operation(e.op, *_SPREADS)
    return Mechanism(
        mechanisms.MEAN_OVER_NOTHING,
        f"{what} Too little was left: no valid element, no positive sample, or a batch of one.",
        changes=("pass correction=0" if spreads else "clamp the count to at least 1",),
        advice=("leave such batches out",),
    )


def _nothing(e: Evidence, producer: Producer) -> str:
    """What the mean or spread is taken over; empty if the origin is none over too few elements."""
    divisor, numerator = divides_by_zero(e, "forward"), producer.operand("self")
    if divisor and numerator and numerator is not divisor and numerator.record.at == 0:
        masks = divisor.lineage == ("sum",) or came_from(divisor.lineage, "sum", "mul", "bool")
        sums = masks and came_from(numerator.lineage, "sum")
        counts = "int" in divisor.record.dtype or came_from(divisor.lineage, "sum|count_nonzero", _COUNT) or sums
        return "0 is divided by a count of 0." if counts else ""
    if any(operand.n_nan or operand.n_inf for operand in producer.tensors):
        return ""
    if is_operation(e.op, "mean") and not producer.tensors:
        return "It is a mean over no elements."
    return "The spread of a single value divides by n - 1 = 0." if is_operation(e.op, *_SPREADS) else ""


def zero_scale(e: Evidence) -> Mechanism | None:
    """A normalisation by a standard deviation, a norm or a range that is zero."""
    divisor = divides_by_zero(e, "forward")
    if divisor is None or e.producer is None:
        return None
    scales = [
        (_SCALE,),
        ("sqrt", "mean|var|sum"),
        ("mul", _SCALE),
        ("sum", "abs|pow"),
        *([("mean",)] if is_operation(e.op, "rsqrt") else []),
    ]
    numerator, lineage = e.producer.operand("self"), unguarded(divisor.lineage)
    shares = e.producer.kind == INVALID and numerator is not None and is_sum_of(lineage, numerator.lineage)
    if not shares and not any(came_from(lineage, *scale) for scale in scales):
        return None
    return Mechanism(
        mechanisms.ZERO_SCALE,
        "The divisor is a statistic that is exactly zero, such as a standard deviation, a norm, a maximum or a sum: "
        "the values that it was taken over are all equal, or all zero.",
        changes=("add an eps to the divisor (under the root, if there is one)",),
        advice=("leave constant inputs out",),
    )


def dora(e: Evidence) -> Mechanism | None:
    """DoRA on a row of zeros."""
    if not e.producer or e.producer.kind == OVERFLOW:
        return None
    if not (e.producer.place.source.startswith("dora.py:") or "lora_magnitude_vector" in e.producer.place.module):
        return None
    return Mechanism(
        mechanisms.DORA_ZERO_NORM,
        "DoRA divides by the norm of a row that is all zeros.",
        advice=("give the row non-zero values before adding DoRA",),
    )


def masked_row(e: Evidence) -> Mechanism | None:
    """A softmax over a row that is masked everywhere."""
    if not (e.producer and e.producer.kind == INVALID and e.producer.masked):
        return None
    # Written out by hand, a softmax is exp(x - max): -inf - -inf is a subtraction.
    attends = any("attention" in name or "attn" in name for name in (e.op, e.producer.place.module.lower()))
    subtrahend = e.producer.operand("other")
    shifts = attends or (subtrahend is not None and came_from(subtrahend.lineage, "amax|max"))
    if not any(name in e.op for name in ("softmax", "attention", *(["aten.sub"] if shifts else []))):
        return None
    return Mechanism(
        mechanisms.MASKED_ROW_SOFTMAX,
        f"{'An attention row' if attends else 'A row of logits'} is masked everywhere (all -inf), so its softmax "
        "is 0 / 0.",
        ("data.padding_side=right", "model.attn=sdpa") if attends else (),
        ("leave one entry of each row unmasked, or set such rows to zero after the softmax",),
    )


def double_mask(e: Evidence) -> Mechanism | None:
    """The sum of two masks of the most negative number."""
    if not (overflows(e, "forward") and e.producer and is_operation(e.op, "add") and len(e.producer.tensors) == 2):
        return None
    if not e.producer.negative or not all(share_of_max(operand) > _MASK_SIZE for operand in e.producer.tensors):
        return None
    return Mechanism(
        mechanisms.DOUBLE_MASK_OVERFLOW,
        "Two masks filled with the most negative finite number are added, and the sum overflows to -inf.",
        changes=("combine boolean masks and convert once",),
    )


def mask_cast(e: Evidence) -> Mechanism | None:
    """The most negative number of a wide dtype, cast to a narrower one."""
    if not (overflows(e, "forward") and e.producer and is_operation(e.op, "_to_copy", "copy") and e.producer.negative):
        return None
    given = e.producer.tensors[-1:]
    if not given or share_of_max(given[0]) <= _MASK_SIZE or given[0].dtype == e.producer.output.dtype:
        return None
    narrow = e.producer.output.dtype
    return Mechanism(
        mechanisms.MASK_CAST_TO_INFINITY,
        f"A mask holds the most negative {given[0].dtype}, and becomes -inf when it is cast to {narrow}.",
        changes=(f"fill the mask with torch.finfo(torch.{narrow}).min, or keep it boolean",),
    )


def exp_overflow(e: Evidence) -> Mechanism | None:
    """An exponential of a number that is too large for any usual dtype."""
    if not (overflows(e, "forward") and e.producer and is_operation(e.op, *_EXPONENTIALS) and e.producer.tensors):
        return None
    operand, limit = e.producer.tensors[0], math.log(dtype_max("float32"))
    # What float32 could hold is a matter of float16's range.
    if operand.at is None or (e.producer.output.dtype == HALF and abs(operand.at) < limit):
        return None
    return Mechanism(
        mechanisms.EXP_OVERFLOW,
        f"The exponential of {operand.at:.4g} exceeds the largest {e.producer.output.dtype}. Log-variances, log-ratios "
        "and logits that nothing bounds end like this.",
        changes=("clamp the exponent", "subtract the maximum first, or use softmax, logsumexp or softplus"),
    )


def outside_domain(e: Evidence) -> Mechanism | None:
    """A function of a number for which it is not defined."""
    name = next((name for name in _DOMAINS if is_operation(e.op, name)), None)
    kinds = (INVALID, *((DIVIDE_BY_ZERO,) if name in _INFINITE_AT_THE_EDGE else ()))
    producer = producer_of(e, "forward", *kinds)
    if producer is None or name is None or not producer.tensors:
        return None
    at = producer.tensors[0].at
    if at is None or not math.isfinite(at):
        return None
    return Mechanism(
        mechanisms.OUTSIDE_DOMAIN,
        f"{name} is not defined at {at:.9g}: its operand must be {_DOMAINS[name]}.",
        changes=(f"clamp the operand of {name} to where it is defined",),
    )


def ctc_too_long(e: Evidence) -> Mechanism | None:
    """A CTC target that no alignment can reach."""
    if not (producer_of(e, "forward", DIVIDE_BY_ZERO, INVALID, OVERFLOW) and e.producer):
        return None
    if "ctc_loss" not in e.op or any(o.n_nan or o.n_inf for o in e.producer.tensors):
        return None
    return Mechanism(
        mechanisms.CTC_TARGET_TOO_LONG,
        "A CTC target is longer than its input (repeated labels need a blank between them), so no alignment exists and "
        "the loss is infinite.",
        changes=("pass zero_infinity=True to the CTC loss",),
        advice=("drop samples whose target is longer than their input",),
    )


def half_activation(e: Evidence) -> Mechanism | None:
    """An activation beyond the float16 range."""
    if not overflows(e, "forward") or e.producer is None or e.producer.output.dtype != HALF:
        return None
    if e.silent_half:
        return silent_half()
    return Mechanism(
        mechanisms.FP16_ACTIVATION_OVERFLOW,
        "An activation exceeded 65504, the largest float16 number. bfloat16 and float32 reach 3.4e38.",
        ("dtype=bf16", "dtype=fp32"),
        ("compute this operation in float32",),
        advice=("store the model in bfloat16",),
    )


def silent_half() -> Mechanism:
    """An overflow in float16 that nobody asked for."""
    return Mechanism(
        mechanisms.SILENT_FP16_STORAGE,
        "The model is stored in float16 although another dtype was requested, and a value exceeded 65504, the largest "
        "float16 number.",
        advice=("pass dtype= to from_pretrained",),
    )
