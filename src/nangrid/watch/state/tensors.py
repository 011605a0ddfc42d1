"""Names and enumerates the tensors of a run: trainables, gradients, optimizer state, modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_PEFT_PREFIX = "base_model.model."


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """The dotted name of every module, as the model has it without adapters; empty for the model itself."""
    return {module: name.removeprefix(_PEFT_PREFIX) for name, module in model.named_modules()}


def trainables(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def notice_trainables(model: nn.Module, optimizer: torch.optim.Optimizer, trainables: dict[str, nn.Parameter]) -> None:
    """Add what the optimizer trains beside: a criterion's parameters, and what was unfrozen since."""
    known = {id(parameter) for parameter in trainables.values()}
    asked = [p for group in optimizer.param_groups for p in group["params"]]
    if all(id(p) in known or not p.requires_grad for p in asked):
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for number, parameter in enumerate(asked):
        if parameter.requires_grad and id(parameter) not in known:
            trainables[names.get(id(parameter), f"the optimizer's parameter {number}")] = parameter


def param_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The optimizer's param_groups without their parameters."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def copy_state(live: Mapping[str, Any], into: dict[str, Any] | None = None) -> dict[str, Any]:
    """A copy of one parameter's optimizer state, reusing the tensors of `into` where they fit."""
    into = into if into is not None else {}
    copied: dict[str, Any] = {}
    for key, value in live.items():
        old = into.get(key)
        if not isinstance(value, Tensor):
            copied[key] = value
        elif isinstance(old, Tensor) and old.shape == value.shape and old.dtype == value.dtype:
            copied[key] = old.copy_(value)
        else:
            copied[key] = value.detach().clone()
    return copied


def gradients(trainables: Mapping[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """Gradients by name, sparse ones by their values."""
    found = {name: p.grad for name, p in trainables.items() if p.grad is not None}
    return {name: g.coalesce().values() if g.is_sparse else g for name, g in found.items()}


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    """Every floating-point tensor of the optimizer's state (of 8-bit states: their float32 scales)."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                yield value


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
