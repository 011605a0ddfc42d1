"""Rules about what was given to the step, and about training as a whole."""

from __future__ import annotations

import math
from itertools import pairwise

from nangrid.records import mechanisms
from nangrid.watch.autopsy.ieee import NONFINITE_INPUT, OVERFLOW
from nangrid.watch.autopsy.mechanism.evidence import HALF, Evidence, Mechanism, dtype_max, producer_of

_RISES = 3
_GROWN = 100.0
"""If the largest parameter grew this many times during training, training has diverged."""
_MOVED = 2.0
"""Losses that rise step by step are a divergence only if the largest parameter grew this many times."""
_LOST = 0.1
"""The loss must also have regained this share of what it had fallen: parameters may grow while it still falls."""


def uninitialised(e: Evidence) -> Mechanism | None:
    """A parameter or buffer that was non-finite at step 0, or memory that nothing had written."""
    before_training = e.step == 0 and e.preexisting.startswith(("parameter ", "buffer "))
    if not before_training and "never written" not in e.preexisting:
        return None
    reason = "was non-finite before the first step: it was never initialised, or its checkpoint is damaged."
    if not before_training:
        reason = "was read before anything was written to it, and held arbitrary numbers."
    return Mechanism(
        mechanisms.UNINITIALISED_PARAMETER,
        f"{e.preexisting} {reason}",
        ("init=mean",) * e.new_rows,
        advice=("initialise it, or load another checkpoint",) if before_training else ("use zeros instead of empty",),
    )


def nonfinite_data(e: Evidence) -> Mechanism | None:
    """A tensor of the batch that was non-finite when the step began."""
    if not e.preexisting.startswith("batch"):
        return None
    where = f": non-finite in {e.preexisting_elements}" if e.preexisting_elements else ""
    return Mechanism(
        mechanisms.NONFINITE_DATA,
        f"The data is non-finite before the model reads it. {e.preexisting}{where}.",
        advice=("drop or fill these values before training", "check the data with isfinite when it is loaded"),
    )


def nonfinite_lr(e: Evidence) -> Mechanism | None:
    """An optimizer that was handed a learning rate of NaN or inf."""
    if not (producer_of(e, "optimizer", NONFINITE_INPUT) and e.nonfinite_lr is not None):
        return None
    return Mechanism(
        mechanisms.NONFINITE_LEARNING_RATE,
        f"The learning rate is {e.nonfinite_lr} at step {e.step}. A schedule that runs past its end often computes "
        "such a number.",
        advice=(f"print the schedule's learning rate at step {e.step}, and give it as many steps as the run",),
    )


def frozen(e: Evidence) -> Mechanism | None:
    """Finite gradients with an infinite norm."""
    if e.clock != "frozen":
        return None
    half = e.producer is not None and e.producer.output.dtype == HALF
    return Mechanism(
        mechanisms.INFINITE_NORM_FREEZE,
        "Every gradient is finite, but their norm is inf. Clipping divides by the norm, so every update is zero: "
        "the loss stays finite and the model learns nothing.",
        (*("dtype=bf16",) * half, *("init=mean",) * e.new_rows, "data.bos=true"),
        advice=("find what makes the gradients this large", "pass error_if_nonfinite=True to clip_grad_norm_"),
    )


def divergence(e: Evidence) -> Mechanism | None:
    """An overflow after a rising loss or of parameters that grew, where the untrained weights are finite."""
    # A batch that also fails on the untrained weights rules out training dynamics.
    if not (producer_of(e, "forward", OVERFLOW) and e.producer and e.untrained is False):
        return None
    losses = [loss for loss in e.losses if math.isfinite(loss)]
    lowest = min(losses, default=0.0)
    rise = losses[-1] - lowest if losses else 0.0
    huge = any(operand.absmax > math.sqrt(dtype_max("float32")) for operand in e.producer.tensors)
    if _keeps_rising(losses) and e.growth > _MOVED:
        sign = f"The loss rose for at least {_RISES} steps before the overflow"
    elif e.growth > _GROWN and (huge or (losses and rise > _LOST * (losses[0] - lowest))):
        sign = f"The largest parameter has grown by a factor of {e.growth:.3g} since training began"
    else:
        return None
    return Mechanism(
        mechanisms.DIVERGENCE,
        f"{sign}, and the same batch is finite on the untrained weights: training has diverged.",
        ("optim.warmup=10", "optim.clip=1.0"),
        advice=("lower the learning rate to a tenth", "warm it up", "clip the gradient norm"),
    )


def _keeps_rising(losses: list[float]) -> bool:
    """Whether the last losses rise step by step, to more than twice and beyond all before: batch noise seldom does."""
    recent, before = losses[-_RISES - 1 :], losses[:-_RISES]
    rises = len(recent) > _RISES and all(a < b for a, b in pairwise(recent))
    lowest = min(losses, default=0.0)
    return rises and losses[-1] - lowest > abs(lowest) and losses[-1] > max(before)
