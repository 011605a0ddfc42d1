"""Replays a step of fully_shard (FSDP2): the ranks gather the whole parameters once, and each runs the bare modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from nangrid.watch.autopsy.replay import Step
from nangrid.watch.state.snapshot import Snapshot
from nangrid.watch.state.tensors import local

_FSDP = "torch.distributed.fsdp"


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters of the model are spread over the ranks, also while fully_shard has gathered them."""
    spread = any(type(parameter).__name__ == "DTensor" for parameter in model.parameters())
    return spread or any(map(fsdp_state, model.modules()))


def has_unreduced_gradients(model: nn.Module) -> bool:
    """Whether fully_shard keeps gradients that the ranks have not exchanged yet: not those of the parameters."""
    states = filter(None, map(fsdp_state, model.modules()))
    # torch 2.11 has one group.
    groups = chain.from_iterable(getattr(s, "_fsdp_param_groups", None) or [s._fsdp_param_group] for s in states)
    return any(map(_is_unreduced, chain.from_iterable(group.fsdp_params for group in groups if group is not None)))


def _is_unreduced(parameter: Any) -> bool:
    whole = getattr(parameter, "_unsharded_param", None)
    return parameter.unsharded_accumulated_grad is not None or (whole is not None and whole.grad is not None)


@contextmanager
def whole(step: Step, snapshot: Snapshot) -> Iterator[Snapshot]:
    """Within the block the model has whole parameters, and no hooks of FSDP; yields the snapshot of those.

    All ranks gather the parameters together, so all of them must have come here.
    """
    places = list(_places(step.model, None))
    sharded = dict(step.trainables)
    plain = _gathered(places, {id(p): snapshot.parameters[name] for name, p in sharded.items()})
    wholes = {name: plain[id(parameter)] for name, parameter in sharded.items() if id(parameter) in plain}
    initial = {name: _whole(value, sharded[name]) for name, value in snapshot.initial.items() if name in wholes}
    gradients = {name: parameter.grad for name, parameter in sharded.items()}
    hooks = [(module, dict(module._forward_pre_hooks), dict(module._forward_hooks)) for module in step.model.modules()]
    try:
        for module, name, parameter, _ in places:
            module._parameters[name] = plain[id(parameter)]
        for module, before, after in hooks:
            _replace_hooks(module, before, after)
        step.trainables.update(wholes)
        values = {name: parameter.detach().clone() for name, parameter in wholes.items()}
        # A GradScaler unscales what the optimizer holds.
        with holding(step.optimizer, plain):
            yield replace(
                snapshot, parameters=snapshot.parameters | values, initial=snapshot.initial | initial, state={}
            )
    finally:
        step.trainables.update(sharded)
        for module, before, after in hooks:
            module._forward_pre_hooks.update(before)
            module._forward_hooks.update(after)
        for module, name, parameter, _ in places:
            module._parameters[name] = parameter
        for name, parameter in sharded.items():
            parameter.grad = gradients[name]


@contextmanager
def holding(optimizer: torch.optim.Optimizer, instead: Mapping[int, nn.Parameter]) -> Iterator[None]:
    """Within the block the optimizer holds other parameters, given by the identities of its own."""
    groups = [(group, group["params"]) for group in optimizer.param_groups]
    try:
        for group, parameters in groups:
            group["params"] = [instead.get(id(parameter), parameter) for parameter in parameters]
        yield
    finally:
        for group, parameters in groups:
            group["params"] = parameters


def _places(module: nn.Module, state: Any) -> Iterator[tuple[nn.Module, str, nn.Parameter, Any]]:
    """Every sharded parameter: its module, its name there, and the state of FSDP that gathers it."""
    state = fsdp_state(module) or state
    for name, parameter in module._parameters.items():
        if type(parameter).__name__ == "DTensor" and parameter is not None:
            yield module, name, parameter, state
    for child in module.children():
        yield from _places(child, state)


def fsdp_state(module: nn.Module) -> Any:
    """What fully_shard keeps of a module; None of one that it was not called on."""
    get_state: Any = getattr(module, "_get_fsdp_state", None)
    return get_state() if get_state else None


def _gathered(
    places: list[tuple[nn.Module, str, nn.Parameter, Any]], before: dict[int, Tensor]
) -> dict[int, nn.Parameter]:
    """The whole of each parameter as the modules compute with it, by the identity of the sharded one.

    `before`: the part of each trainable that this rank held before the step.
    """
    plain: dict[int, nn.Parameter] = {}
    for _, _, parameter, state in places:
        if id(parameter) not in plain:
            dtype = state._mp_policy.param_dtype if state is not None else None
            value = _whole(before.get(id(parameter), local(parameter)), parameter).detach().to(dtype or parameter.dtype)
            plain[id(parameter)] = nn.Parameter(value.clone(), parameter.requires_grad)
    return plain


def _whole(value: Tensor, parameter: Any) -> Tensor:
    """The whole of a tensor that is sharded as the parameter is."""
    from torch.distributed.tensor import DTensor

    mesh, placements = parameter.device_mesh, parameter.placements
    shape, strides = parameter.shape, parameter.stride()
    return DTensor.from_local(value, mesh, placements, run_check=False, shape=shape, stride=strides).full_tensor()


def _replace_hooks(module: nn.Module, before: dict[int, Any], after: dict[int, Any]) -> None:
    """Leave of FSDP's hooks what they compute: casts to the dtypes of its policy."""
    policy = getattr(fsdp_state(module), "_mp_policy", None)
    if policy is None:
        return
    taken = policy.param_dtype if policy.cast_forward_inputs else None
    given = policy.output_dtype
    for number, hook in before.items():
        if _is_of_fsdp(hook):
            module._forward_pre_hooks[number] = lambda _, *inputs: _cast(taken, inputs)
    for number, hook in after.items():
        if _is_of_fsdp(hook):
            module._forward_hooks[number] = lambda _, inputs, output: _cast(given, output)


def _cast(dtype: torch.dtype | None, values: Any) -> Any:
    """All floating-point tensors in a container in that dtype; torch 2.11 has no function for it alone."""
    from torch.distributed.utils import _apply_to_tensors

    if dtype is None:
        return values
    return _apply_to_tensors(lambda x: x.to(dtype) if x.is_floating_point() else x, values)


def _is_of_fsdp(hook: Callable[..., Any]) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(_FSDP)
