"""Which operation wrote each non-finite value, and out of which operands?

Every operation of a replayed step passes here on its way to the kernel. Tensors are not kept: of each write of
a non-finite value the operation and the earlier writes it read are, and of the few operations that bore one
(a NaN from operands without NaN, an infinity from finite operands) all that an autopsy reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nangrid.records.autopsy import TensorRecord
from nangrid.watch.autopsy.ieee import (
    NONFINITE_INPUT,
    base_name,
    elements,
    ieee_kind,
    is_elementwise,
    operands,
    written_tensors,
)
from nangrid.watch.autopsy.introduced import copies, is_finite, newly_nonfinite, wide
from nangrid.watch.autopsy.places import Place, Places
from nangrid.watch.state.tensors import dtype_name

_FILLS = (
    "fill",
    "full",
    "scalar_tensor",
    "where",
    "constant_pad",
    "lift_fresh",
    "clamp",
    "nan_to_num",
    "copy",
)
"""Operations that put a scalar into a tensor: a non-finite one is intentional."""
MOST_ROWS = 64
_ALLOCATIONS = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


@dataclass(frozen=True)
class Producer:
    """An operation that made a non-finite value which none of its operands held."""

    phase: str
    micro_batch: int
    place: Place
    kind: str
    inputs: tuple[TensorRecord, ...]
    output: TensorRecord
    first_index: tuple[int, ...]
    """Of the first element that was born: a NaN, if one was."""
    bad_rows: tuple[tuple[int, ...], ...]
    """Up to 64 leading indices (all dimensions but the last) with such an element."""
    scalars: tuple[float, ...]
    negative: bool
    """Whether all that is non-finite is -inf."""
    masked: bool
    """Whether a whole row of -inf went into the first of them."""
    intentional: bool
    """A fill with a non-finite scalar: an attention mask, a banned token."""


@dataclass(frozen=True)
class Write:
    """A write of a non-finite value; `sources` are the earlier writes whose values were read."""

    op: str
    nan: bool
    """Whether a NaN is among what was written, not infinities alone."""
    sources: tuple[int, ...] = ()
    """Those of its first non-finite element that was carried on."""
    reads: tuple[int, ...] = ()
    """All of them: another element may come from another write."""
    producer: Producer | None = None
    causes: tuple[int, ...] = ()
    """What the producer's first element was made of, where a NaN was born of infinities."""
    place: Place | None = None
    """Of an operation that read a tensor which was non-finite before the step."""
    at: tuple[int, int] = (0, 0)
    """The number of the operation in its step, and which of its results this is."""
    preexisting: str = ""
    """Not an operation: a tensor that was non-finite before the step, by name."""
    negative: bool = False
    """Of a preexisting: all its non-finite elements are -inf, as in a mask."""


@dataclass(frozen=True)
class _Range:
    start: int
    stop: int
    steps: tuple[tuple[int, int], ...]
    """Sizes and strides between the two."""
    write: int


@dataclass(frozen=True)
class _Read:
    """An operand's elements as they were before the operation."""

    label: str
    place: int | None
    """Where it stands in a list of tensors (foreach and fused optimizers)."""
    tensor: Tensor
    writes: tuple[int, ...]
    """The writes of non-finite values that its memory holds."""

    @property
    def write(self) -> int | None:
        """The last of them."""
        return max(self.writes, default=None)


class Tracer(TorchDispatchMode):
    """Notes every write of a non-finite value while it is entered."""

    def __init__(self, places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places = places
        self.phase = "forward"
        self.micro_batch = 0
        self.writes: list[Write] = []
        self._labels: dict[int, str] = {}
        self._held: dict[int, list[_Range]] = {}
        self._operations = 0
        self._unwritten: set[int] = set()
        """Storages that were allocated and not written yet."""

    def register(self, leaves: Iterable[tuple[str, Tensor]]) -> None:
        """Name tensors that exist before the step, and note those that are non-finite already."""
        for name, preexisting in leaves:
            tensor = elements(preexisting)
            if tensor is not None:
                self._labels[_storage(tensor)] = name
                if not is_finite(tensor):
                    self._leaf(name, tensor)

    def writer(self, tensor: Tensor) -> int | None:
        """The last write of a non-finite value into the memory of `tensor`, as an index into `writes`."""
        return max(self._writers(tensor), default=None)

    def _writers(self, tensor: Tensor) -> tuple[int, ...]:
        """Those whose range it overlaps: between the elements of one column another may lie."""
        memory = elements(tensor)
        if memory is None:
            return ()
        start, stop = _extent(memory)
        held = self._held.get(_storage(memory), ())
        return tuple(r.write for r in held if r.start < stop and start < r.stop)

    def current_phase(self) -> str:
        """forward, backward or optimizer; recomputation in a checkpointed region belongs to backward."""
        if self.phase == "forward" and torch._C._current_autograd_node() is not None:
            return "backward"
        return self.phase

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it wrote."""
        kwargs = kwargs or {}
        self._operations += 1
        before = copies(func, args, kwargs)
        reads = self._reads(func, args, kwargs, before)
        result = func(*args, **kwargs)
        allocates = base_name(func) in _ALLOCATIONS
        for which, (place, tensor) in enumerate(written_tensors(func, args, kwargs, result)):
            if allocates:
                self._unwritten.add(_storage(tensor))
            else:
                self._unwritten.discard(_storage(tensor))
            if allocates or is_finite(tensor):
                self._release(tensor)
            else:
                read = [r for r in reads if place is None or r.place in (place, None)]
                self._note(func, before, read, which, tensor)
        return result

    def _reads(self, func: Any, args: Any, kwargs: Any, before: tuple[Any, Any]) -> list[_Read]:
        reads = []
        kept = operands(func, *before)
        for (name, place, tensor), (_, _, copy) in zip(operands(func, args, kwargs), kept, strict=True):
            label = self._label(name, place, tensor)
            writes = self._writers(tensor)
            if writes and is_finite(copy):  # between its elements, or in memory since freed and reused
                writes = ()
            reads.append(_Read(label, place, wide(copy), writes))
        return reads

    def _note(self, func: Any, before: tuple[Any, Any], reads: list[_Read], which: int, tensor: Tensor) -> None:
        written = wide(tensor)
        nan = bool(written.isnan().any())
        if self._is_born(nan, reads):
            reads = [self._with_leaf(read) for read in reads]
        born = newly_nonfinite(func, [read.tensor for read in reads], written)
        bad = written.isnan() if nan else written.isinf()
        carried = bad & ~born
        everything = tuple(dict.fromkeys(write for read in reads for write in read.writes))
        last = tuple(dict.fromkeys(read.write for read in reads if read.write is not None))
        first = _first(carried if carried.any() else bad)
        sources = _culprits(reads, written, first) or last
        producer, causes = None, last
        if born.any():
            first = _first(born & bad if (born & bad).any() else born)
            producer = self._birth(func, before, reads, which, tensor, born & bad if written[first].isnan() else born)
            causes = _culprits(reads, written, first) if is_elementwise(func) else last
        place = self.places.here() if any(self.writes[write].preexisting for write in everything) else None
        at = self._operations, which
        self._hold(tensor, Write(str(func), nan, sources, everything, producer, causes, place=place, at=at))

    def _is_born(self, nan: bool, reads: list[_Read]) -> bool:
        held = [self.writes[read.write] for read in reads if read.write is not None]
        return not any(write.nan for write in held) if nan else not held

    def _with_leaf(self, read: _Read) -> _Read:
        """An operand that nothing wrote in this step and that is non-finite all the same: a constant."""
        if read.write is not None or is_finite(read.tensor):
            return read
        unwritten = _storage(read.tensor) in self._unwritten
        name = f"{read.label} (memory that was allocated and never written)" if unwritten else read.label
        return replace(read, writes=(self._leaf(name, read.tensor),))

    def _leaf(self, name: str, tensor: Tensor) -> int:
        nan, negative = bool(wide(tensor).isnan().any()), _is_negative(tensor)
        return self._hold(tensor, Write("", nan, preexisting=name, negative=negative))

    def _birth(
        self, func: Any, before: tuple[Any, Any], reads: list[_Read], which: int, tensor: Tensor, born: Tensor
    ) -> Producer:
        bad, first = born.nonzero(), _first(born)
        rows = bad[:, :-1].unique(dim=0) if tensor.dim() > 1 else bad
        scalars = tuple(x for x in tree_leaves(before) if type(x) is float and not math.isfinite(x))
        # 0 * -inf is a mistake of the model's, but a learning rate of inf is one of whoever gave it.
        mistaken = self.phase != "optimizer" and bool(wide(tensor)[first].isnan()) and not any(map(math.isnan, scalars))
        given = bool(scalars) and not mistaken
        return Producer(
            phase=self.current_phase(),
            micro_batch=self.micro_batch,
            place=self.places.here(),
            kind=NONFINITE_INPUT if given else ieee_kind(func, *before, wide(tensor), which, first),
            inputs=tuple(
                _measure(read.label, read.tensor, _element(func, read.tensor, tensor, first)) for read in reads
            ),
            output=_measure(self._label("", None, tensor), tensor),
            first_index=first,
            bad_rows=tuple(tuple(int(i) for i in row) for row in rows[:MOST_ROWS].tolist()),
            scalars=scalars,
            negative=_is_negative(tensor),
            masked=any(_is_masked(read.tensor, tensor, _dimension(func, before), first) for read in reads),
            intentional=bool(scalars) and any(fill in base_name(func) for fill in _FILLS),
        )

    def _label(self, name: str, place: int | None, tensor: Tensor) -> str:
        return self._labels.get(_storage(tensor)) or (name if place is None else f"{name}[{place}]")

    def _hold(self, tensor: Tensor, write: Write) -> int:
        self._release(tensor)
        start, stop = _extent(tensor)
        self._held.setdefault(_storage(tensor), []).append(_Range(start, stop, _steps(tensor), len(self.writes)))
        self.writes.append(write)
        return len(self.writes) - 1

    def _release(self, tensor: Tensor) -> None:
        """What is overwritten as a whole is no longer held; a fresh tensor may reuse a freed address.

        Between the elements of a column, say, much stays as it was.
        """
        held = self._held.get(_storage(tensor))
        if held:
            (start, stop), steps = _extent(tensor), _steps(tensor)
            dense = tensor.numel() * tensor.element_size() == stop - start
            held[:] = [
                r
                for r in held
                if not (start <= r.start and r.stop <= stop and (dense or (r.start, r.steps) == (start, steps)))
            ]


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in mask.nonzero()[0])


def _culprits(reads: list[_Read], written: Tensor, index: tuple[int, ...]) -> tuple[int, ...]:
    """The writes that were read; where elements correspond, those non-finite at this one of the output."""
    held = [(read.write, read.tensor) for read in reads if read.write is not None]
    try:
        guilty = [write for write, tensor in held if not tensor.expand(written.shape)[index].isfinite()]
    except RuntimeError:  # no broadcast: a product, a reduction
        guilty = [write for write, _ in held]
    return tuple(dict.fromkeys(guilty))


def _is_negative(tensor: Tensor) -> bool:
    written = wide(tensor)
    return bool(((written == -math.inf) | torch.isfinite(written)).all())


def _element(func: Any, operand: Tensor, output: Tensor, index: tuple[int, ...]) -> float | None:
    """The element of an operand that this one of the output was made of; None where more went into it."""
    if not is_elementwise(func):
        return None
    try:
        element = operand.expand(output.shape)[index]
    except RuntimeError:  # no broadcast
        return None
    return None if element.is_complex() else float(element)


def _dimension(func: Any, before: tuple[Any, Any]) -> int:
    """Along which an operation works: that of a softmax is its second argument."""
    return int(before[0][1]) if base_name(func) in ("_softmax", "_log_softmax", "_safe_softmax") else -1


def _is_masked(operand: Tensor, output: Tensor, dim: int, index: tuple[int, ...]) -> bool:
    """Whether all of the operand's row, along `dim`, that went into an element of the output is -inf."""
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


def _measure(name: str, tensor: Tensor, at: float | None = None) -> TensorRecord:
    values = wide(tensor)
    finite = values[torch.isfinite(values)]
    absmax = finite.abs().max().item() if finite.numel() else 0.0
    n_nan, n_inf = int(values.isnan().sum()), int(values.isinf().sum())
    return TensorRecord(name, list(tensor.shape), dtype_name(tensor.dtype), absmax, n_nan, n_inf, at)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First and one-past-last element of the storage that the tensor covers, in bytes."""
    size = tensor.element_size()
    start = tensor.storage_offset()
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(start * size), int((start + reach + 1) * size)


def _steps(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    return tuple((n, stride) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
