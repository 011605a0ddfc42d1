"""Remembers which operations each tensor of a replayed step was computed by.

A divisor of zero alone does not say what it was: a count of labels, a norm, a standard deviation. The operations that
computed it do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nangrid.watch.autopsy.operands import schema, tensors_in

LONGEST = 10

Lineage = tuple[str, ...]
"""Names of operations, the last one first; where one read truth values or integers, `bool` or `int` follows it."""


class Lineages:
    """The lineage of every tensor that was written, along the first tensor that each operation read."""

    def __init__(self) -> None:
        self._known: dict[int, Lineage] = {}

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Record an operation that has run; views share the lineage of what they view."""
        read = [*tensors_in(args), *tensors_in(kwargs.values())]
        # what is selected by a condition is the second operand
        first = read[1 if schema(func).name == "where" and len(read) > 1 else 0] if read else None
        lineage = (schema(func).name.rstrip("_"), *_kind(first), *self.of(first))[:LONGEST]
        sources = {_storage(tensor) for tensor in read}
        for tensor in tensors_in([result]):
            if schema(func).written or _storage(tensor) not in sources:
                self._known[_storage(tensor)] = lineage

    def of(self, tensor: Tensor | None) -> Lineage:
        """The lineage of a tensor; empty if nothing wrote it in this step."""
        return () if tensor is None else self._known.get(_storage(tensor), ())


def _kind(tensor: Tensor | None) -> Lineage:
    if tensor is None or tensor.is_floating_point() or tensor.is_complex():
        return ()
    return ("bool",) if tensor.dtype is torch.bool else ("int",)


def _storage(tensor: Tensor) -> int:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse layouts have no storage of their own
        return id(tensor)
