"""Names, enumerates and measures the tensors of a run: trainables, gradients, optimizer state, embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

_PEFT_PREFIX = "base_model.model."
_WITH_VALUES = (torch.jagged, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """The dotted name of every module, as the model has it without adapters; empty for the model itself."""
    return {module: name.removeprefix(_PEFT_PREFIX) for name, module in model.named_modules()}


def trainables(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def add_new_trainables(model: nn.Module, optimizer: torch.optim.Optimizer, trainables: dict[str, nn.Parameter]) -> None:
    """Add to `trainables` what else the optimizer trains: a loss function's parameters, layers unfrozen since."""
    known = {id(parameter) for parameter in trainables.values()}
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    if all(id(p) in known or not p.requires_grad for p in optimized):
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for number, parameter in enumerate(optimized):
        if parameter.requires_grad and id(parameter) not in known:
            trainables[names.get(id(parameter), f"the optimizer's parameter {number}")] = parameter


def param_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The optimizer's param_groups without their parameters."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def copy_state(live: Mapping[str, Any], into: dict[str, Any] | None = None) -> dict[str, Any]:
    """A copy of one parameter's optimizer state, reusing the tensors of `into` where they fit."""
    into = into if into is not None else {}
    copied: dict[str, Any] = {}
    for key, whole in live.items():
        old, value = into.get(key), local(whole)
        if not isinstance(value, Tensor):
            copied[key] = value
        # Reusing the memory of the last copy saves an allocation per tensor and step.
        elif isinstance(old, Tensor) and old.shape == value.shape and old.dtype == value.dtype:
            copied[key] = old.copy_(value)
        else:
            copied[key] = value.detach().clone()
    return copied


def local(tensor: Any) -> Any:
    """The part of a sharded tensor (DTensor) that is on this rank; anything else is itself."""
    # By name, because torch.distributed.tensor takes long to import. `to_local` would be differentiable.
    return tensor._local_tensor if type(tensor).__name__ == "DTensor" else tensor


def present_gradients(trainables: Mapping[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """The gradients that exist, by name."""
    return {name: p.grad for name, p in trainables.items() if p.grad is not None}


def gradients(trainables: Mapping[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """The gradients that exist, by name; of sparse ones the values."""
    present = {name: local(gradient) for name, gradient in present_gradients(trainables).items()}
    return {name: g.coalesce().values() if g.is_sparse else g for name, g in present.items()}


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    """Every floating-point tensor of the optimizer's state, once (of 8-bit states: their float32 scales)."""
    # bitsandbytes' parameters share the tables of their 8-bit numbers.
    distinct = {id(value): value for state in optimizer.state.values() for value in state.values()}
    for value in distinct.values():
        if isinstance(value, Tensor) and value.is_floating_point():
            yield local(value)


def embedding(model: nn.Module, side: Literal["input", "output"]) -> nn.Module | None:
    """The module that `get_input_embeddings` or `get_output_embeddings` returns; None for a model without one."""
    getter = getattr(model, f"get_{side}_embeddings", None)
    try:
        module = getter() if getter else None
    except (NotImplementedError, AttributeError):  # transformers models of sounds and images
        return None
    return module if isinstance(module, nn.Module) else None


def base_weight(module: nn.Module | None) -> Tensor | None:
    """The weight of a module, below a PEFT adapter if it has one."""
    weight = getattr(getattr(module, "base_layer", module), "weight", None)
    return weight if isinstance(weight, Tensor) else None


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def rounds_to_zero(number: float, dtype: torch.dtype) -> bool:
    """Whether a number, such as an optimizer's eps, is 0 in this dtype."""
    return float(torch.tensor(number, dtype=dtype)) == 0.0


def elements(tensor: Tensor) -> Tensor | None:
    """The memory that holds a tensor's floating-point or complex numbers: of a sparse or jagged one the values.

    None where there is nothing to inspect: integers, meta tensors, layouts of other libraries.
    """
    tensor = local(tensor)
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    if tensor.layout is torch.strided:
        return None if tensor.is_nested else tensor.detach()
    if tensor.layout is torch.sparse_coo:
        return tensor.detach()._values()
    if tensor.layout in _WITH_VALUES:
        return tensor.detach().values()
    return None


def wide(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if its elements are 8-bit floats: torch has no kernels that compare those."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def extent(tensors: Iterable[Tensor]) -> Tensor:
    """Largest absolute value over all elements, on their device: NaN or inf as soon as one is not finite."""
    ends = [end for tensor in map(_real, tensors) if tensor.numel() for end in torch.aminmax(tensor)]
    if not ends:
        return torch.zeros(())
    # A model may be spread over several devices and dtypes.
    widest = torch.float64 if any(end.dtype is torch.float64 for end in ends) else torch.float32
    host = [end for end in ends if end.is_cpu]
    if len(host) < len(ends):
        # On the CPU torch keeps a step number for every parameter: one copy to the other device for all of them.
        ends = [end for end in ends if not end.is_cpu]
        ends += [torch.stack([end.to(widest) for end in host]).abs().max()] if host else []
    device = gathering_device(ends)
    return torch.stack([end.to(device, widest, non_blocking=True) for end in ends]).abs().max()


def gathering_device(tensors: Iterable[Tensor]) -> torch.device:
    """Where numbers of several devices are brought together: on the first of them that is no CPU, if there is one."""
    # Copies to a GPU arrive in order. On the CPU, where torch keeps AdamW's step, one that nobody waits for may be read
    # before it has arrived.
    devices = [tensor.device for tensor in tensors]
    return next((device for device in devices if device.type != "cpu"), devices[0])


def _real(tensor: Tensor) -> Tensor:
    tensor = local(tensor)
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else wide(tensor)


def is_finite(tensor: Tensor) -> bool:
    """Whether every element is finite. One aminmax pass: `isfinite().all()` is twenty times slower on a CPU."""
    values = elements(tensor)
    if values is None or not values.numel():
        return True
    return all(math.isfinite(end.item()) for end in torch.aminmax(_real(values)))
