"""Lists every mechanism that an autopsy can name: its id, as records hold it, and a short title."""

from __future__ import annotations

UNINITIALISED_PARAMETER = "uninitialised-parameter"
INFINITE_NORM_FREEZE = "infinite-norm-freeze"
EMPTY_LABELS = "empty-labels"
DORA_ZERO_NORM = "dora-zero-norm"
MASKED_ROW_SOFTMAX = "masked-row-softmax"
DOUBLE_MASK_OVERFLOW = "double-mask-overflow"
LOG_OF_ZERO = "log-of-zero"
ADAM_EPS_UNDERFLOW = "adam-eps-underflow"
DIVERGENCE = "divergence"
FP16_ACTIVATION_OVERFLOW = "fp16-activation-overflow"
FP16_GRADIENT_OVERFLOW = "fp16-gradient-overflow"
SILENT_FP16_STORAGE = "silent-fp16-storage"
ZERO_ROW_NORM_GRADIENT = "zero-row-norm-gradient"
NONFINITE_DATA = "nonfinite-data"
NONFINITE_LEARNING_RATE = "nonfinite-learning-rate"
MEAN_OVER_NOTHING = "mean-over-nothing"
ZERO_SCALE = "zero-scale"
EXP_OVERFLOW = "exp-overflow"
MASK_CAST_TO_INFINITY = "mask-cast-to-infinity"
OUTSIDE_DOMAIN = "outside-domain"
CTC_TARGET_TOO_LONG = "ctc-target-too-long"
DERIVATIVE_AT_POLE = "derivative-at-pole"
OPTIMIZER_EPS_UNDERFLOW = "optimizer-eps-underflow"
UNKNOWN = "unknown"

TITLES = {
    UNINITIALISED_PARAMETER: "A parameter or buffer was never initialised",
    INFINITE_NORM_FREEZE: "An infinite gradient norm makes every update zero",
    EMPTY_LABELS: "The loss is a mean over no labels",
    DORA_ZERO_NORM: "DoRA divides by the norm of a zero row",
    MASKED_ROW_SOFTMAX: "A softmax over a fully masked row",
    DOUBLE_MASK_OVERFLOW: "Two additive masks overflow when added",
    LOG_OF_ZERO: "The logarithm of zero",
    ADAM_EPS_UNDERFLOW: "Adam's eps rounds to zero",
    DIVERGENCE: "Training diverged",
    FP16_ACTIVATION_OVERFLOW: "An activation exceeds the float16 range",
    FP16_GRADIENT_OVERFLOW: "A gradient exceeds the float16 range",
    SILENT_FP16_STORAGE: "The model is stored in float16 unintentionally",
    ZERO_ROW_NORM_GRADIENT: "RMSNorm amplifies the gradient of zero rows",
    NONFINITE_DATA: "The data is non-finite",
    NONFINITE_LEARNING_RATE: "The learning rate is NaN or infinite",
    MEAN_OVER_NOTHING: "A mean over no elements",
    ZERO_SCALE: "A normalisation divides by a statistic that is zero",
    EXP_OVERFLOW: "An exponential overflows",
    MASK_CAST_TO_INFINITY: "A mask becomes -inf when it is cast",
    OUTSIDE_DOMAIN: "A function is evaluated where it is not defined",
    CTC_TARGET_TOO_LONG: "A CTC target is longer than its input",
    DERIVATIVE_AT_POLE: "A derivative is evaluated at a pole",
    OPTIMIZER_EPS_UNDERFLOW: "The optimizer's eps is zero, or rounds to zero",
    UNKNOWN: "No known mechanism fits the evidence",
}
"""Mechanism id -> title."""
