"""Enumerates the tensors that an operation reads and writes, by its schema."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nangrid.watch.state.tensors import elements

_OVERWRITES = (
    "copy_",
    "fill_",
    "zero_",
    "normal_",
    "uniform_",
    "random_",
    "bernoulli_",
    "set_",
    "_foreach_copy_",
)
"""Operations that write an argument without reading it."""
_COUNTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Schema:
    """What tells an operation's operands from its results, worked out once per operation: a step runs thousands."""

    name: str
    """Without namespace and overload."""
    arguments: tuple[str, ...]
    written: frozenset[str]
    """The arguments that the operation writes in place."""
    read: frozenset[str]
    calculated: frozenset[str]
    """The arguments that are numbers to calculate with: not sizes, dimensions or switches."""
    fresh: tuple[bool, ...]
    """Of each result, whether it is neither an argument nor a view of one."""
    elementwise: bool
    """Whether each element of the result is made of one element of each operand."""
    trusted: bool
    """Whether it is one of torch's own: a custom operation may write what its schema does not declare."""


@cache
def schema(func: Any) -> Schema:
    """The schema of an operation (an OpOverload)."""
    declared = func._schema
    name = str(declared.name.split("::")[-1])
    arguments = declared.arguments
    written = {a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write}
    unread = {a.name for a in arguments if a.name in written and (name in _OVERWRITES or a.is_out)}
    numbers = ("Tensor", "number", "float")
    return Schema(
        name=name,
        arguments=tuple(a.name for a in arguments),
        written=frozenset(written),
        read=frozenset(a.name for a in arguments) - unread,
        calculated=frozenset(a.name for a in arguments if any(kind in str(a.type) for kind in numbers)),
        fresh=tuple(result.alias_info is None for result in declared.returns),
        elementwise=torch.Tag.pointwise in func.tags or name.startswith(("_foreach_", "_fused_", "_to_copy")),
        trusted=func.namespace == "aten",
    )


def written_tensors(func: Any, args: Any, kwargs: Any, result: Any) -> list[tuple[int | None, Tensor]]:
    """The elements of every tensor that an operation wrote: mutated arguments, then fresh outputs.

    Each comes with its index in a list of tensors (foreach and fused optimizers), or None.
    """
    of = schema(func)
    values = [value for name, value in _bound(of, args, kwargs) if name in of.written] if of.written else []
    returns = [] if result is None else [result] if len(of.fresh) == 1 else list(result)
    values += [value for fresh, value in zip(of.fresh, returns, strict=False) if fresh]
    return [written for value in values for written in _tensors(value)]


def operands(func: Any, args: Any, kwargs: Any) -> list[tuple[str, int | None, Tensor]]:
    """Every tensor that an operation read: its name in the schema, its index in a list of tensors, its elements."""
    of = schema(func)
    read = ((name, value) for name, value in _bound(of, args, kwargs) if name in of.read)
    return [(name, place, tensor) for name, value in read for place, tensor in _tensors(value)]


def numbers(func: Any, args: Any, kwargs: Any) -> list[tuple[str, int | None, Tensor | float]]:
    """As `operands`, in the same order, with the numbers among the arguments and the integers of elementwise ones."""
    of = schema(func)
    read: list[tuple[str, int | None, Tensor | float]] = []
    for name, value in _bound(of, args, kwargs):
        several = isinstance(value, list | tuple)
        for place, item in enumerate(value if several else [value]) if name in of.read else ():
            at = place if several else None
            if isinstance(item, Tensor):
                counts = of.elementwise and item.dtype in _COUNTS and item.layout is torch.strided
                read += [(name, at, tensor) for _, tensor in ([(None, item)] if counts else _tensors(item))]
            elif type(item) in (int, float) and name in of.calculated:
                read.append((name, at, item))
    return read


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments or results, those in lists too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def _bound(of: Schema, args: Any, kwargs: Any) -> Iterator[tuple[str, Any]]:
    """The schema's arguments that were given, in its order."""
    yield from zip(of.arguments, args, strict=False)
    for name in of.arguments[len(args) :] if kwargs else ():
        if name in kwargs:
            yield name, kwargs[name]


def _tensors(value: Any) -> list[tuple[int | None, Tensor]]:
    if isinstance(value, list | tuple):
        return [(i, tensor) for i, item in enumerate(value) for _, tensor in _tensors(item)]
    tensor = elements(value) if isinstance(value, Tensor) else None
    return [(None, tensor)] if tensor is not None and tensor.numel() else []
