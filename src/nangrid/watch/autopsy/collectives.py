"""Runs a step of one rank without the others: a collective gets what it would if all ranks held the same as this one.

A rank replays its own step as often as it needs to. Its collectives must not meet those of another rank, which would
wait for more of them, or train on what it received.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def without_collectives() -> Iterator[None]:
    """Within the block, nothing is sent to other ranks, and DistributedDataParallel runs its bare module."""
    if not (dist.is_available() and dist.is_initialized()):
        yield
        return

    def bare(self: DistributedDataParallel, *inputs: Any, **kwargs: Any) -> Any:
        return self.module(*inputs, **kwargs)

    # Its own forward would prepare the backward pass to reduce the gradients, and broadcast the buffers.
    with mock.patch.object(DistributedDataParallel, "forward", bare), _Alone():  # type: ignore[no-untyped-call]
        yield


class _Alone(TorchDispatchMode):
    """Answers every collective on this rank."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            return _answer(func, args)
        if func.namespace == "_c10d_functional":
            return _answer_functional(func, args)
        return func(*args, **kwargs)


def _answer(func: Any, args: Any) -> Any:
    """Do what a collective of torch.distributed does, in place; its result is the work, with its outputs if any."""
    name = func._opname
    if name not in _COLLECTIVES:
        raise RuntimeError(f"the loop calls {name.strip('_')}, which cannot be repeated without the other ranks")
    with torch.no_grad():
        _COLLECTIVES[name](*args)
    work = dist.Work.boxed(torch._C._distributed_c10d.FakeWork())
    returns = len(func._schema.returns)
    return work if returns == 1 else None if returns == 0 else (args[0], work)


def _unchanged(*_: Any) -> None:
    """What each rank holds already is the answer."""


def _reduced(tensors: list[Tensor], group: Any, operation: Any, *_: Any) -> None:
    for tensor in tensors:
        _add_up(tensor, group, operation)


def _add_up(tensor: Tensor, group: Any, operation: Any) -> None:
    """The sum over the ranks; of other operations on equal numbers, the number is the result."""
    if operation.op() == dist.ReduceOp.SUM:
        tensor.mul_(_size(group))


def _size(group: Any) -> int:
    return _group(group).size()


def _group(name_or_group: Any) -> dist.ProcessGroup:
    if isinstance(name_or_group, str):
        return dist.distributed_c10d._resolve_process_group(name_or_group)  # type: ignore
    return dist.ProcessGroup.unbox(name_or_group)


def _gathered(outputs: list[list[Tensor]], inputs: list[Tensor], *_: Any) -> None:
    for output, tensor in zip(outputs, inputs, strict=False):  # on other ranks than the root, gather has no outputs
        for each in output:
            each.copy_(tensor)


def _gathered_into_one(output: Tensor, tensor: Tensor, group: Any, *_: Any) -> None:
    output.view(_size(group), -1).copy_(tensor.reshape(1, -1))


def _scattered(outputs: list[Tensor], inputs: list[list[Tensor]], group: Any, operation: Any, *_: Any) -> None:
    for output, tensors in zip(outputs, inputs, strict=True):
        output.copy_(tensors[_group(group).rank()])
        _add_up(output, group, operation)


def _scattered_from_one(output: Tensor, tensor: Tensor, group: Any, operation: Any, *_: Any) -> None:
    output.copy_(tensor.view(_size(group), -1)[_group(group).rank()].view_as(output))
    _add_up(output, group, operation)


_COLLECTIVES: dict[str, Callable[..., None]] = {
    "allreduce_": _reduced,
    "allreduce_coalesced_": _reduced,
    "reduce_": _reduced,
    "broadcast_": _unchanged,
    "barrier": _unchanged,
    "monitored_barrier_": _unchanged,
    "send": _unchanged,
    "allgather_": _gathered,
    "gather_": _gathered,
    "_allgather_base_": _gathered_into_one,
    "reduce_scatter_": _scattered,
    "_reduce_scatter_base_": _scattered_from_one,
}


def _answer_functional(func: Any, args: Any) -> Any:
    """Do what a collective of torch.distributed's functional ones does; they return a new tensor."""
    name, tensor = func._opname, args[0]
    if name == "wait_tensor":
        return tensor
    if name in ("all_reduce", "all_reduce_"):
        summed = tensor * _group(args[2]).size() if args[1] == "sum" else tensor.clone()
        return tensor.copy_(summed) if name.endswith("_") else summed
    if name == "all_gather_into_tensor":
        return torch.cat([tensor] * args[1])
    if name == "broadcast":
        return tensor.clone()
    raise RuntimeError(f"the loop calls {name}, which cannot be repeated without the other ranks")
