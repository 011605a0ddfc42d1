"""Reads the dtypes and kernels that the live model really uses.

They are read from the modules, the first forward pass and the optimizer's state, never from the config, because
libraries cast silently: transformers before 5 loaded fp16, PEFT casts adapters to float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nangrid.watch.state.tensors import base_weight, dtype_name, embedding, state_tensors

_ADAPTER_MARKS = ("lora_", "modules_to_save")


def _names(dtypes: Iterable[torch.dtype]) -> str:
    """The dtypes joined, the most frequent first: `bfloat16` or `uint8+bfloat16`."""
    return "+".join(dtype_name(d) for d, _ in Counter(dtypes).most_common())


@dataclass
class Ledger:
    """The dtypes really in use, such as `float32` or, if mixed, `bfloat16+float32`."""

    storage: str
    """Frozen floating-point weights."""
    quantised: str
    """Number and kind of the quantised linear layers, such as `126 nf4`; `none`."""
    compute: str
    """The dtype in which quantised layers multiply."""
    autocast: str
    layers: int
    """Number of decoder layers: the length of the model's first module list."""
    adapter: dict[str, str]
    """Dtype of the adapters per kind of adapted module (`q_proj`, `embed_tokens`, ...)."""
    residual_stream: str = "not seen"
    """Dtype of the decoder layers' outputs in the first forward pass."""
    optimizer_state: str = "none"
    tied: dict[str, bool] = field(default_factory=dict)
    """Whether embedding and head share their base weight, and their adapters."""
    arithmetic: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    """Number of tensors that a factor (`upcast`, `init`) really changed."""
    warnings: list[str] = field(default_factory=list)
    preflight: list[str] = field(default_factory=list)
    """What preflight found before the first step, one line per finding."""
    early_warnings: list[str] = field(default_factory=list)
    """Warnings of gradients that grew towards the largest number of their dtype."""

    def as_dict(self) -> dict[str, Any]:
        """A plain dict for the record."""
        return asdict(self)


def read_model(model: nn.Module, autocast: torch.dtype | None) -> Ledger:
    """The ledger of a built model; `observe_residual` and `read_optimizer` add what only a step shows."""
    frozen = [p.dtype for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    # PEFT's wrappers of quantised layers have the same class names, and a base_layer.
    names = ("Linear4bit", "Linear8bitLt")
    quantised = [m for m in model.modules() if type(m).__name__ in names and not hasattr(m, "base_layer")]
    compute = [dtype for m in quantised if (dtype := getattr(m, "compute_dtype", None))]
    kinds = Counter(_quantised_kind(m) for m in quantised)
    return Ledger(
        storage=_names(frozen) or "none",
        quantised=", ".join(f"{n} {kind}" for kind, n in kinds.items()) or "none",
        compute=_names(compute) or "as the input",
        autocast="none" if autocast is None else dtype_name(autocast),
        layers=len(_layers(model)),
        adapter=_adapters(model),
        tied=_tied(model),
    )


def _layers(model: nn.Module) -> nn.ModuleList:
    return next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)), nn.ModuleList())


def _quantised_kind(module: nn.Module) -> str:
    return str(getattr(module.weight, "quant_type", "int8"))


def _adapters(model: nn.Module) -> dict[str, str]:
    dtypes: dict[str, list[torch.dtype]] = {}
    for name, parameter in model.named_parameters():
        mark = next((m for m in _ADAPTER_MARKS if m in name), None)
        if mark and parameter.requires_grad:
            kind = name.split(f".{mark}")[0].rsplit(".", 1)[-1]
            dtypes.setdefault(kind, []).append(parameter.dtype)
    return {kind: _names(of_kind) for kind, of_kind in dtypes.items()}


def _tied(model: nn.Module) -> dict[str, bool]:
    table, head = embedding(model, "input"), embedding(model, "output")
    if table is None or head is None:
        return {}
    weight = base_weight(table)
    adapters = [{id(p) for n, p in m.named_parameters() if "lora_" in n} for m in (table, head)]
    shared = weight is not None and weight is base_weight(head)
    return {"base": shared, "adapters": bool(adapters[0] & adapters[1])}


def observe_residual(model: nn.Module, ledger: Ledger) -> None:
    """Record the dtype of the decoder layers' outputs in the first forward pass, then remove the hooks."""
    layers = _layers(model)
    if not len(layers):
        return
    dtypes: list[torch.dtype] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        # Decoder layers of older transformers return a tuple.
        hidden = output if isinstance(output, Tensor) else output[0]
        dtypes.append(hidden.dtype)
        ledger.residual_stream = _names(dtypes)

    def remove_hooks(*_: Any) -> None:
        for handle in handles:
            handle.remove()

    handles = [layer.register_forward_hook(note) for layer in layers]
    handles.append(model.register_forward_hook(remove_hooks))


def read_optimizer(optimizer: torch.optim.Optimizer, ledger: Ledger) -> None:
    """Record the dtypes of the optimizer's moments after its first step; 8-bit moments are stored as uint8."""
    moments = [
        value.dtype
        for parameter, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    ]
    # Adafactor keeps factors of the second moment, which have other shapes.
    factored = [value.dtype for value in state_tensors(optimizer) if value.dim()]
    ledger.optimizer_state = _names(moments or factored) or "none"


def read_arithmetic(device: str, half_products: dict[str, str] | None = None) -> dict[str, Any]:
    """How this machine multiplies: half products emulated or native, CPU capability, precision settings."""
    cuda = torch.backends.cuda
    return {
        "device": device,
        "half_products": half_products or {},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "fp16_reduced_precision": cuda.matmul.allow_fp16_reduced_precision_reduction,
        "bf16_reduced_precision": cuda.matmul.allow_bf16_reduced_precision_reduction,
    }
