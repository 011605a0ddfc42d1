"""In which dtypes and with which kernels does the live model really compute?

Read off the modules, a first forward pass and the optimizer's state, never off the config: libraries cast
behind one's back (transformers before 5 loaded fp16 silently, PEFT casts adapters to float32).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nangrid.watch.state.tensors import dtype_name, state_tensors

_ADAPTER_MARKS = ("lora_", "modules_to_save")


def _names(dtypes: Iterable[torch.dtype]) -> str:
    """The dtypes by frequency, joined: `bfloat16` or `uint8+bfloat16`."""
    return "+".join(dtype_name(d) for d, _ in Counter(dtypes).most_common())


@dataclass
class Ledger:
    """The dtypes really in use; a field reads like `float32` or, where mixed, `bfloat16+float32`."""

    storage: str
    """Frozen floating-point weights."""
    quantised: str
    """Kind of the quantised linear layers, with their number; `none`."""
    compute: str
    """dtype in which quantised layers multiply."""
    autocast: str
    layers: int
    """Depth: the decoder layers, or whatever the model keeps in its first list of modules."""
    adapter: dict[str, str]
    """Per kind of adapted module (`q_proj`, `embed_tokens`, ...)."""
    residual_stream: str = "not seen"
    """Output of the decoder layers in the first forward pass."""
    optimizer_state: str = "none"
    tied: dict[str, bool] = field(default_factory=dict)
    """Whether embedding and head share their base weight, and their adapters."""
    arithmetic: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    """How many tensors a factor really changed (`upcast`, `init`)."""
    warnings: list[str] = field(default_factory=list)
    preflight: list[str] = field(default_factory=list)
    """What was wrong before the first step, a line a finding."""
    early_warnings: list[str] = field(default_factory=list)
    """Of gradients that grew towards the end of their format."""

    def as_dict(self) -> dict[str, Any]:
        """A plain dict for the record."""
        return asdict(self)


def read_model(model: nn.Module, autocast: torch.dtype | None) -> Ledger:
    """Read a built model; `observe_residual` and `read_optimizer` fill in what only a step shows."""
    frozen = [p.dtype for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    # PEFT's adapted layers go by the same names
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
    return {kind: _names(found) for kind, found in dtypes.items()}


def _tied(model: nn.Module) -> dict[str, bool]:
    embedding, head = (_embedding(model, f"get_{side}_embeddings") for side in ("input", "output"))
    if embedding is None or head is None:
        return {}
    adapters = [{id(p) for n, p in m.named_parameters() if "lora_" in n} for m in (embedding, head)]
    return {"base": _weight(embedding) is _weight(head), "adapters": bool(adapters[0] & adapters[1])}


def _embedding(model: nn.Module, getter: str) -> nn.Module | None:
    module = getattr(model, getter)() if hasattr(model, getter) else None
    return module if isinstance(module, nn.Module) else None


def _weight(module: nn.Module) -> Any:
    return getattr(module, "base_layer", module).weight


def observe_residual(model: nn.Module, ledger: Ledger) -> None:
    """Note the dtype of the decoder layers' outputs in the first forward pass, then step aside."""
    layers = _layers(model)
    if not len(layers):
        return
    seen: list[torch.dtype] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        seen.append(hidden.dtype)
        ledger.residual_stream = _names(seen)

    def step_aside(*_: Any) -> None:
        for handle in handles:
            handle.remove()

    handles = [layer.register_forward_hook(note) for layer in layers]
    handles.append(model.register_forward_hook(step_aside))


def read_optimizer(optimizer: torch.optim.Optimizer, ledger: Ledger) -> None:
    """Note the dtypes of the optimizer's moments, after its first step: 8-bit codes are uint8."""
    moments = [
        value.dtype
        for parameter, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    ]
    factored = [value.dtype for value in state_tensors(optimizer) if value.dim()]
    ledger.optimizer_state = _names(moments or factored) or "none"


def read_arithmetic(device: str, half_products: dict[str, str] | None = None) -> dict[str, Any]:
    """How products are made on this machine: emulated or native halves, CPU capability, attention kernels."""
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
