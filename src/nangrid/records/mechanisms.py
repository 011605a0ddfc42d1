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
    UNKNOWN: "No known mechanism fits the evidence",
}
"""Mechanism id -> title."""
