"""Finds the model inside the wrappers that train it on several ranks, and refuses those that cannot be watched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nangrid.records.errors import InputError
from nangrid.watch.ranks.sharded import fsdp_state
from nangrid.watch.ranks.zero import ENGINE

_MODULES = {
    "FullyShardedDataParallel": "FullyShardedDataParallel (FSDP1)",
    "PipelineEngine": "pipeline parallelism",
    "DeepSpeedHybridEngine": "DeepSpeed's hybrid engine",
    "PipelineStage": "pipeline parallelism",
    "PipelineParallel": "pipeline parallelism",
}
"""Class of a wrapper -> what it is called."""
_OPTIMIZERS = {
    "ZeroRedundancyOptimizer": "ZeroRedundancyOptimizer (ZeRO 1)",
    "DistributedOptimizer": "DistributedOptimizer",
    "PostLocalSGDOptimizer": "local SGD",
}


def bare(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel or DeepSpeed; its parameters have the names that the user knows."""
    if isinstance(model, DistributedDataParallel) or type(model).__name__ == ENGINE:
        inner: Any = model.module
        return bare(inner)
    return model


def engine_among(models: Sequence[Any]) -> Any:
    """The engine of DeepSpeed that trains; None without one, InputError if it is not alone."""
    engines = [model for model in models if type(model).__name__ == ENGINE]
    if engines and len(models) > 1:
        raise InputError("Watch follows one engine of DeepSpeed alone: pass it without other models and optimizers.")
    return engines[0] if engines else None


def refuse_parallelism(models: Iterable[Any], optimizers: Iterable[Any]) -> None:
    """InputError if a model or optimizer is spread over the ranks in a way that no replay covers."""
    found = [_MODULES.get(type(part).__name__) for model in models for part in _parts(model)]
    found += [_OPTIMIZERS.get(type(optimizer).__name__) for optimizer in optimizers]
    found += [name for model in models if isinstance(model, nn.Module) for name in _shardings(model, None)]
    found += [_engine(model) for model in models if type(model).__name__ == ENGINE]
    for name in filter(None, found):
        raise InputError(
            f"Watch does not support {name}: use DistributedDataParallel, fully_shard over all ranks, or DeepSpeed's "
            "ZeRO 1 or 2."
        )


def refuse_join(model: nn.Module) -> None:
    """InputError within DistributedDataParallel's `join`, where a rank may take steps that the others do not."""
    if isinstance(model, DistributedDataParallel) and model._join_config.enable:
        raise InputError("Watch does not support DistributedDataParallel.join: give all ranks as many batches.")


def _engine(engine: Any) -> str | None:
    """The name of what an engine of DeepSpeed does besides ZeRO 1 and 2."""
    zero = engine.optimizer
    if type(zero).__name__ != "DeepSpeedZeroOptimizer":
        stages = {0: "DeepSpeed without ZeRO", 3: "ZeRO 3 of DeepSpeed"}
        return stages.get(engine.zero_optimization_stage(), f"the {type(zero).__name__} of DeepSpeed")
    replaced = ("_backward_prologue", "_backward_epilogue")
    named = {
        "this version of DeepSpeed": not all(hasattr(engine, name) for name in replaced),
        "ZeRO-Offload": zero.cpu_offload,
        "zenflow of DeepSpeed": engine.zenflow,
        "a custom loss scaler of DeepSpeed": zero.custom_loss_scaler,
        "a constant loss_scale of DeepSpeed": zero.loss_scale != 1 and not zero.dynamic_loss_scale,
        "torch_autocast of DeepSpeed in float16": zero.torch_autocast_gradscaler is not None,
        "round_robin_gradients of DeepSpeed": zero.round_robin_gradients,
        "DeepSpeed with experts": any(getattr(zero, "is_moe_param_group", [])),
        "tensor parallelism": zero.model_parallel_world_size > 1,
    }
    return next((name for name, used in named.items() if used), None)


def _parts(model: Any) -> Iterable[Any]:
    return model.modules() if isinstance(model, nn.Module) else [model]


def _shardings(module: nn.Module, state: Any) -> Iterator[str]:
    """The names of those ways to spread parameters that are not fully_shard over all ranks."""
    state = fsdp_state(module) or state
    for parameter in module._parameters.values():
        if type(parameter).__name__ == "DTensor":
            yield from _sharding(parameter, state)
    for child in module.children():
        yield from _shardings(child, state)


def _sharding(parameter: Any, state: Any) -> Iterator[str]:
    mesh = parameter.device_mesh
    if state is None:
        yield "tensor parallelism"
    elif mesh.ndim > 1 and any(placement.is_replicate() for placement in parameter.placements):
        yield "HSDP (fully_shard with replicas)"
    elif mesh.ndim > 1:
        yield "tensor parallelism with fully_shard"
    elif mesh.size() < dist.get_world_size():
        yield "fully_shard over a part of the ranks"
