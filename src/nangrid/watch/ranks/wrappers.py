"""Finds the model inside the wrappers that train it on several ranks, and refuses those that cannot be watched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nangrid.records.errors import InputError
from nangrid.watch.ranks.sharded import fsdp_state

_MODULES = {
    "FullyShardedDataParallel": "FullyShardedDataParallel (FSDP1)",
    "DeepSpeedEngine": "DeepSpeed (ZeRO)",
    "PipelineStage": "pipeline parallelism",
    "PipelineParallel": "pipeline parallelism",
}
"""Class of a wrapper -> what it is called."""
_OPTIMIZERS = {
    "ZeroRedundancyOptimizer": "ZeroRedundancyOptimizer (ZeRO 1)",
    "DeepSpeedZeroOptimizer": "DeepSpeed (ZeRO 1 and 2)",
    "DeepSpeedZeroOptimizer_Stage3": "DeepSpeed (ZeRO 3)",
    "DistributedOptimizer": "DistributedOptimizer",
    "PostLocalSGDOptimizer": "local SGD",
}


def bare(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel; its parameters have the names that the user knows."""
    return bare(model.module) if isinstance(model, DistributedDataParallel) else model


def refuse_parallelism(models: Iterable[Any], optimizers: Iterable[Any]) -> None:
    """InputError if a model or optimizer is spread over the ranks in a way that no replay covers."""
    found = [_MODULES.get(type(part).__name__) for model in models for part in _parts(model)]
    found += [_OPTIMIZERS.get(type(optimizer).__name__) for optimizer in optimizers]
    found += [name for model in models if isinstance(model, nn.Module) for name in _shardings(model, None)]
    for name in filter(None, found):
        raise InputError(f"Watch does not support {name}: use DistributedDataParallel, or fully_shard over all ranks.")


def refuse_join(model: nn.Module) -> None:
    """InputError within DistributedDataParallel's `join`, where a rank may take steps that the others do not."""
    if isinstance(model, DistributedDataParallel) and model._join_config.enable:
        raise InputError("Watch does not support DistributedDataParallel.join: give all ranks as many batches.")


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
