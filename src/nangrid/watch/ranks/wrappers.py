"""Finds the model inside the wrappers that train it on several ranks."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def bare(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel; its parameters have the names that the user knows."""
    return bare(model.module) if isinstance(model, DistributedDataParallel) else model
