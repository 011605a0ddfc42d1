"""Tells whether a micro-batch, or one of its samples, has labels that count in the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""What torch's and transformers' losses leave out by default."""


def unlabelled(inputs: Any, sample: int | None = None) -> str:
    """The name of the labels that are all ignored, or of the mask of labels that is all zero; empty if there is none.

    `sample`: look at this one alone.
    """
    for name, value in inputs.items() if isinstance(inputs, Mapping) else ():
        if not isinstance(value, Tensor) or (value.is_floating_point() and "mask" not in str(name)):
            continue
        part = value[sample] if sample is not None and value.dim() and sample < len(value) else value
        if part.numel() and _selects_nothing(str(name), part):
            return str(name)
    return ""


def _selects_nothing(name: str, part: Tensor) -> bool:
    if "label" in name and part.dtype is not torch.bool:
        return bool((part == IGNORED).all())
    # An attention mask chooses what is read, not what is learned.
    return "mask" in name and "attention" not in name and not bool(part.any())
