"""Checks what this machine can run."""

from __future__ import annotations

import os
from pathlib import Path

from nangrid.cell.config import Config
from nangrid.records.errors import InputError


def may_have_cuda() -> bool:
    """Whether there is an NVIDIA driver with visible devices; a guess that does not import torch."""
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def refuse_unsupported(config: Config) -> None:
    """InputError for a level that would silently do something else on this machine."""
    if config.dtype.autocast == "fp16" and not _has_cuda():
        raise InputError(
            f"dtype={config.dtype.name} needs a CUDA device and this machine has none "
            "(TrainingArguments(fp16=True) silently trains without AMP on a CPU): "
            "type dtype=amp_bf16, or dtype=fp16 for pure half precision."
        )
    if config.processes > 1 and _has_cuda():
        raise InputError(
            f"processes={config.processes} trains on the CPU alone, and this machine has a CUDA device: "
            "hide it with CUDA_VISIBLE_DEVICES=-1, or leave processes out."
        )
    if config.model.attn in ("efficient", "cudnn") and not _has_cuda():
        raise InputError(
            f"model.attn={config.model.attn} is a kernel for CUDA devices and this machine has none: "
            "type model.attn=math or model.attn=flash."
        )


def _has_cuda() -> bool:
    if not may_have_cuda():
        return False
    import torch

    return torch.cuda.is_available()
