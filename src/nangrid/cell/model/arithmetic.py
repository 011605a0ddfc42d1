"""Makes a CPU multiply half-precision matrices as a GPU does.

A tensor core takes fp16 or bf16 operands, multiplies and sums in float32, and rounds once at the end. On a
CPU without such products torch falls back to loops up to 200 times slower than float32. `install` puts the
float32 product, rounded once, in their place in torch's dispatcher, which every thread, backward pass,
recomputation and custom op (bitsandbytes' gemm_4bit) goes through. Only CPU keys are touched.

Attention is not changed: torch's fused CPU kernel sums in float32 already, and it rounds probabilities and
score gradients to half between its products as a GPU's does, so it overflows where a GPU's overflows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
_JOINS = ("cat", "stack")

_overrides = Library("aten", "IMPL")  # type: ignore[no-untyped-call]
"""The overrides last as long as this object."""


@dataclass(frozen=True)
class Arithmetic:
    """How this process multiplies each half dtype on the CPU: `native` (torch's kernels) or `emulated`."""

    fp16: str
    bf16: str


_installed: Arithmetic | None = None


def current() -> Arithmetic:
    """The arithmetic of this process now; nothing is emulated before `install`."""
    return _installed or Arithmetic(fp16="native", bf16="native")


def install() -> Arithmetic:
    """Emulate the half products that this CPU lacks, and let CPU autocast join tensors as CUDA's does.

    It applies to the whole process; a second call changes nothing.
    """
    global _installed
    if _installed is None:
        _installed = _lacking()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"(?s).*Overriding a previously registered kernel", UserWarning)
            _override_products(_installed)
            _join_as_cuda_does()
    return _installed


def _lacking() -> Arithmetic:
    mkldnn = torch.ops.mkldnn
    return Arithmetic(
        fp16="native" if mkldnn._is_mkldnn_fp16_supported() else "emulated",
        bf16="native" if mkldnn._is_mkldnn_bf16_supported() else "emulated",
    )


def _override_products(arithmetic: Arithmetic) -> None:
    levels = {torch.float16: arithmetic.fp16, torch.bfloat16: arithmetic.bf16}
    emulated = frozenset(dtype for dtype, level in levels.items() if level == "emulated")
    if not emulated:
        return
    for name in _PRODUCTS:
        kernel = _product(getattr(torch.ops.aten, name).out, emulated)
        _overrides.impl(name, kernel, "CPU")  # type: ignore[no-untyped-call]


def _product(original: Callable[..., Tensor], emulated: frozenset[torch.dtype]) -> Callable[..., Tensor]:
    """The product that `original` computes, emulated if all operands have one dtype in `emulated`.

    `original` is the `out=` overload: the same kernel under another name. `torch.library.get_kernel` would
    save 2 microseconds per call, but its `call_boxed` holds the GIL for the whole product (torch 2.13).
    """

    def product(*operands: Tensor, **scalars: Any) -> Tensor:
        left = operands[-2]
        dtype = left.dtype
        if dtype not in emulated or any(operand.dtype is not dtype for operand in operands):
            return original(*operands, **scalars, out=left.new_empty(0))
        wide = [operand.float() for operand in operands]
        return original(*wide, **scalars, out=wide[-1].new_empty(0)).to(dtype)

    return product


def _join_as_cuda_does() -> None:
    """Take autocast off `cat` and `stack`, which then promote to the widest dtype as they do anywhere else.

    CUDA has no autocast kernel for them; the CPU's refuses a half dtype that is not the autocast one
    ("Unexpected floating ScalarType in at::autocast::prioritize").
    """
    for name in _JOINS:
        _overrides.impl(name, fallthrough_kernel, "AutocastCPU")  # type: ignore[no-untyped-call]
