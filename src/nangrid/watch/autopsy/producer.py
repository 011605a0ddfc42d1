"""Describes an operation that made a non-finite value: its operands, its output, and the elements concerned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nangrid.records.autopsy import TensorRecord
from nangrid.watch.autopsy.lineage import Lineage, Lineages
from nangrid.watch.autopsy.operands import numbers, schema
from nangrid.watch.autopsy.places import Place
from nangrid.watch.state.tensors import dtype_name, wide

NUMBERS = ("int", "float")
"""What stands for the dtype of an operand that is a number and no tensor."""


@dataclass(frozen=True)
class Read:
    """An operand's elements as they were before the operation."""

    label: str
    place: int | None
    """Its index in a list of tensors (foreach and fused optimizers)."""
    tensor: Tensor
    writes: tuple[int, ...]
    """The writes of non-finite values that its memory holds."""
    lineage: Lineage = ()

    @property
    def write(self) -> int | None:
        """The last of these writes."""
        return max(self.writes, default=None)


@dataclass(frozen=True)
class Operand:
    """One operand of a producer: a tensor or a number."""

    argument: str
    """Its name in the operation's schema."""
    record: TensorRecord
    """`dtype` is `int` or `float` for a number."""
    lineage: Lineage


@dataclass(frozen=True)
class Producer:
    """An operation that made a non-finite value which none of its operands held."""

    phase: str
    micro_batch: int
    place: Place
    kind: str
    operands: tuple[Operand, ...]
    """In the order of the operation's schema."""
    output: TensorRecord
    first_index: tuple[int, ...]
    """Of the first new element: a NaN if there is one."""
    bad_rows: tuple[tuple[int, ...], ...]
    """Up to 64 leading indices (all dimensions but the last) with such an element."""
    columns: int
    """How many indices of the last dimension are hit, if they are the same ones in each of several rows; else 0."""
    scalars: tuple[float, ...]
    negative: bool
    """Whether all that is non-finite is -inf."""
    masked: bool
    """Whether a whole row of -inf went into the first of them."""
    intentional: bool
    """A fill with a non-finite scalar: an attention mask, a banned token."""

    @property
    def inputs(self) -> tuple[TensorRecord, ...]:
        """The operands as an autopsy records them."""
        return tuple(operand.record for operand in self.operands)

    @property
    def tensors(self) -> tuple[TensorRecord, ...]:
        """The operands that are tensors of floating-point numbers."""
        return tuple(o.record for o in self.operands if o.record.dtype not in NUMBERS and "int" not in o.record.dtype)

    def operand(self, *names: str) -> Operand | None:
        """The first operand that has one of these names in the operation's schema."""
        return next((operand for operand in self.operands if operand.argument in names), None)


def is_negative(tensor: Tensor) -> bool:
    """Whether all that is non-finite is -inf."""
    written = wide(tensor)
    return bool(((written == -math.inf) | torch.isfinite(written)).all())


def element_behind(func: Any, operand: Tensor, output: Tensor, index: tuple[int, ...]) -> float | None:
    """The operand's element behind an element of the output; None if several elements went into it."""
    if not schema(func).elementwise:
        return None
    try:
        element = operand.expand(output.shape)[index]
    except RuntimeError:  # no broadcast
        return None
    return None if element.is_complex() else float(element)


def dimension_of(func: Any, before: tuple[Any, Any]) -> int:
    """The dimension along which an operation works: the second argument of a softmax, else the last."""
    return int(before[0][1]) if schema(func).name in ("_softmax", "_log_softmax", "_safe_softmax") else -1


def is_masked(operand: Tensor, output: Tensor, dim: int, index: tuple[int, ...]) -> bool:
    """Whether the operand's whole row (along `dim`) behind an element of the output is -inf."""
    if operand.dim() == 0 or output.dim() == 0 or not -output.dim() <= dim < output.dim():
        return False
    place = list(index)
    place.pop(dim)
    try:
        rows = operand.movedim(dim, -1)
        row = rows.expand(*output.movedim(dim, -1).shape[:-1], rows.shape[-1])[tuple(place)]
    except (RuntimeError, IndexError):  # not laid out as the output is
        return False
    return bool((row == -math.inf).all())


def measure(name: str, tensor: Tensor, at: float | None = None) -> TensorRecord:
    """The record of a tensor; `at`: the element behind the first non-finite one of the output."""
    values = wide(tensor)
    finite = values[torch.isfinite(values)]
    absmax = finite.abs().max().item() if finite.numel() else 0.0
    n_nan, n_inf = int(values.isnan().sum()), int(values.isinf().sum())
    return TensorRecord(name, list(tensor.shape), dtype_name(tensor.dtype), absmax, n_nan, n_inf, at)


def measured_operands(
    func: Any, before: tuple[Any, Any], reads: list[Read], output: Tensor, first: tuple[int, ...], lineages: Lineages
) -> tuple[Operand, ...]:
    """Tensors and numbers that went into `output`, each with its element behind the element `first` of the output.

    `reads`: the floating-point tensors among them, in the same order.
    """
    measured, waiting = [], list(reads)
    places = {read.place for read in reads}
    for argument, place, value in numbers(func, *before):
        if place is not None and place not in places:
            continue
        if not isinstance(value, Tensor):
            measured.append(Operand(argument, measure_number(argument, value), ()))
        elif value.is_floating_point() or value.is_complex():
            read = waiting.pop(0)
            at = element_behind(func, read.tensor, output, first)
            measured.append(Operand(argument, measure(read.label, read.tensor, at), read.lineage))
        else:
            at = element_behind(func, value, output, first)
            measured.append(Operand(argument, measure(argument, value, at), lineages.of(value)))
    return tuple(measured)


def measure_number(name: str, value: float) -> TensorRecord:
    """The record of an operand that is a number and no tensor."""
    finite, nan = math.isfinite(value), math.isnan(value)
    size = abs(float(value)) if finite else 0.0
    at = None if nan else float(value)
    return TensorRecord(name, [], type(value).__name__, size, int(nan), int(not finite and not nan), at)


def shared_columns(new: Tensor) -> int:
    """How many columns are hit, if the new elements fill the same ones in every one of several rows; else 0."""
    if new.dim() < 2:
        return 0
    rows = new.flatten(0, -2)
    columns = int(rows.any(dim=0).sum())
    filled = len(rows) > 1 and columns < rows.shape[1] and int(rows.sum()) == len(rows) * columns
    return columns if filled else 0
