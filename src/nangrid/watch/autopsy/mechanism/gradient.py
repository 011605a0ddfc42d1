"""Rules about operations of the backward pass and of the optimizer, and about logarithms in either pass."""

from __future__ import annotations

import re

import torch

from nangrid.records import mechanisms
from nangrid.watch.autopsy.ieee import DIVIDE_BY_ZERO, INVALID, OVERFLOW
from nangrid.watch.autopsy.mechanism.evidence import (
    HALF,
    Evidence,
    Mechanism,
    divides_by_zero,
    overflows,
    producer_of,
)
from nangrid.watch.autopsy.mechanism.forward import silent_half
from nangrid.watch.autopsy.producer import Producer

_LOGARITHM = re.compile(r"aten\.(log|log2|log10|log1p|logit|xlogy|xlog1py)_?\.")
_LOGARITHM_NODE = re.compile(r"(Log|Log2|Log10|Log1P|Logit|Xlogy|Xlog1Py)Backward", re.IGNORECASE)
_STABLE = {
    "log1p": "use log(-expm1(x)) instead of log1p(-exp(x)) for x < 0",
    "logit": "use the sigmoid's input instead of the logit of its output",
}
"""Advice for operations to which the usual advice does not apply."""
_POLES = {
    "Sqrt": ("the square root", "0"), "Rsqrt": ("1 / sqrt", "0"), "Pow": ("the power", "0"),
    "Acos": ("acos", "-1 and 1"), "Asin": ("asin", "-1 and 1"), "Acosh": ("acosh", "1"), "Atanh": ("atanh", "-1 and 1"),
    "LinalgVectorNorm": ("the norm", "the zero vector"), "Norm": ("the norm", "the zero vector"),
    "Cdist": ("the distance", "equal points"), "EuclideanDist": ("the distance", "equal points"),
    "LinalgEigh": ("the eigenvectors", "equal eigenvalues"), "LinalgEig": ("the eigenvectors", "equal eigenvalues"),
    "LinalgSvd": ("the singular vectors", "equal singular values"), "Atan2": ("atan2", "the origin"),
}  # fmt: skip
"""Autograd nodes of functions whose slope is infinite or undefined somewhere: the function, and where."""
_SAFE = {
    "acos": "clamp the operand to just inside -1 and 1, or use atan2",
    "asin": "clamp the operand to just inside -1 and 1, or use atan2",
    "the eigenvectors": "use the eigenvalues alone, or add distinct small numbers to the diagonal",
    "the singular vectors": "use the singular values alone, or add distinct small numbers",
}


def log_of_zero(e: Evidence) -> Mechanism | None:
    """A logarithm, or its slope, at zero."""
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
        changes=("compute log-probabilities in float32", stable),
    )


def _is_slope_near_zero(producer: Producer) -> bool:
    """Whether 1 / x overflowed because x is subnormal; float16 has rules of its own further down."""
    divisor = producer.tensors[-1] if producer.tensors else None
    if producer.phase != "backward" or divisor is None or divisor.at is None or divisor.dtype == HALF:
        return False
    return producer.kind == OVERFLOW and abs(divisor.at) < torch.finfo(getattr(torch, divisor.dtype)).tiny


def derivative_at_pole(e: Evidence) -> Mechanism | None:
    """The slope of a root, a norm, an arc function or of eigenvectors where it is infinite or undefined."""
    producer = producer_of(e, "backward", DIVIDE_BY_ZERO, INVALID)
    node = re.match(r"(\w+?)Backward\d*$", producer.place.node) if producer else None
    if producer is None or node is None or node[1] not in _POLES:
        return None
    if any(operand.n_nan for operand in producer.tensors):
        return None
    function, pole = _POLES[node[1]]
    return Mechanism(
        mechanisms.DERIVATIVE_AT_POLE,
        f"The forward value is finite, but the slope of {function} is infinite or undefined at {pole}. `where` behind "
        "it does not help: its gradient is 0 times infinity.",
        changes=(_SAFE.get(function, f"add an eps to the operand of {function}, or clamp it before"),),
    )


def optimizer_eps(e: Evidence) -> Mechanism | None:
    """An update of 0 / 0 because eps is zero in the dtype of the parameters."""
    divisor = divides_by_zero(e, "optimizer")
    if divisor is None or e.producer is None or divisor.record.dtype not in e.eps_underflows:
        return None
    adam = "adam" in e.optimizer.lower() and e.producer.output.dtype != "float32"
    return Mechanism(
        mechanisms.ADAM_EPS_UNDERFLOW if adam else mechanisms.OPTIMIZER_EPS_UNDERFLOW,
        f"The eps of {e.optimizer or 'the optimizer'} is 0 or rounds to 0 in {divisor.record.dtype}, so an element "
        "without a gradient, or with one whose square rounds to 0, is divided by 0.",
        (*("dtype=bf16",) * (divisor.record.dtype == HALF), "upcast=trainable", "optim=paged_adamw_8bit"),
        advice=("keep trained parameters in float32", "pass a larger eps to the optimizer"),
    )


def half_gradient(e: Evidence) -> Mechanism | None:
    """A gradient beyond the float16 range."""
    if not overflows(e, "backward") or e.producer is None or e.producer.output.dtype != HALF:
        return None
    if e.silent_half:
        return silent_half()
    amplifies = e.zero_rows and e.norms
    amplified = (
        " The embedding rows of the tokens at the origin are all zero, and each norm layer multiplies the gradient of "
        "such a row by 1 / sqrt(eps)."
    )
    return Mechanism(
        mechanisms.FP16_GRADIENT_OVERFLOW,
        "A gradient exceeded 65504, the largest float16 number, in the backward pass." + amplified * amplifies,
        ("dtype=bf16", "init=mean" if amplifies and e.new_rows else "dtype=fp32"),
        advice=("store the model in bfloat16", "scale the loss down"),
    )


def zero_row(e: Evidence) -> Mechanism | None:
    """The gradient of zero rows, amplified by norm layers."""
    if not (overflows(e, "backward") and e.zero_rows and e.norms):
        return None
    return Mechanism(
        mechanisms.ZERO_ROW_NORM_GRADIENT,
        "The embedding rows of the tokens at the origin are all zero. In the backward pass each norm layer multiplies "
        "the gradient of such a row by 1 / sqrt(eps), often about 1000, until it overflows.",
        (*("init=mean",) * e.new_rows, "data.bos=true"),
        advice=("initialise the rows of new tokens with the mean of the others",),
    )
