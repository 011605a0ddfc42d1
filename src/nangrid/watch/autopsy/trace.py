"""Records which operation wrote each non-finite value of a replayed step, and from which operands.

Every operation passes through the tracer on its way to the kernel. Tensors are not kept. For each write of a non-finite
value the tracer keeps the operation and the earlier writes that it read. For the few producers (a NaN from operands
without NaN, an infinity from finite operands) it also keeps all that an autopsy reports.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nangrid.watch.autopsy.ablate import Writes, outputs_by_operation, zero_introduced
from nangrid.watch.autopsy.ieee import NONFINITE_INPUT, ieee_kind
from nangrid.watch.autopsy.introduced import copies, newly_nonfinite
from nangrid.watch.autopsy.lineage import Lineages
from nangrid.watch.autopsy.operands import operands, schema, written_tensors
from nangrid.watch.autopsy.places import Place, Places, recomputes
from nangrid.watch.autopsy.producer import (
    Producer,
    Read,
    dimension_of,
    is_masked,
    is_negative,
    measure,
    measured_operands,
    shared_columns,
)
from nangrid.watch.state.tensors import elements, is_finite, wide

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
class Write:
    """A write of a non-finite value; `sources` are the earlier writes whose values were read."""

    op: str
    nan: bool
    """Whether a NaN is among what was written, not infinities alone."""
    sources: tuple[int, ...] = ()
    """The writes that its first passed-on non-finite element was read from."""
    reads: tuple[int, ...] = ()
    """All writes that were read: another element may come from another write."""
    producer: Producer | None = None
    causes: tuple[int, ...] = ()
    """The writes that the producer's first element was made of, where infinities became a NaN."""
    place: Place | None = None
    """Set for an operation that read a tensor which was non-finite before the step."""
    at: tuple[int, int] = (0, 0)
    """The number of the operation in its step, and which of its results this is."""
    preexisting: str = ""
    """Not an operation: a tensor that was non-finite before the step, by name."""
    negative: bool = False
    """Whether all non-finite elements of a preexisting tensor are -inf, as in a mask."""


@dataclass
class Progress:
    """How far the replayed step is."""

    phase: str = "forward"
    """forward, backward or optimizer."""
    micro_batch: int = 0


@dataclass(frozen=True)
class _Range:
    """The memory of one write, in bytes of its storage."""

    start: int
    stop: int
    steps: tuple[tuple[int, int], ...]
    """Sizes and strides of the tensor that was written."""
    write: int


class Tracer(TorchDispatchMode):
    """Notes every write of a non-finite value while it is entered."""

    def __init__(self, places: Places, ablated: Writes = ()) -> None:
        """`ablated`: writes in place of whose non-finite numbers there are zeros; see `Ablation`."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.places = places
        self._ablated = outputs_by_operation(ablated)
        self.progress = Progress()
        self.writes: list[Write] = []
        self._labels: dict[int, str] = {}
        self._held: dict[int, list[_Range]] = {}
        self._operations = 0
        self._unwritten: set[int] = set()
        """Storages that were allocated and have not been written yet."""
        self._lineages = Lineages()

    def register(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Name tensors that exist before the step, and record those that are non-finite already."""
        for name, preexisting in named_tensors:
            tensor = elements(preexisting)
            if tensor is not None:
                self._labels[_storage(tensor)] = name
                if not is_finite(tensor):
                    self._hold_preexisting(name, tensor)

    def writer(self, tensor: Tensor) -> int | None:
        """The last write of a non-finite value into the memory of `tensor`, as an index into `writes`."""
        return max(self._writers(tensor), default=None)

    def _writers(self, tensor: Tensor) -> tuple[int, ...]:
        """The writes whose range the tensor overlaps; another column may lie between the elements of one."""
        memory = elements(tensor)
        if memory is None:
            return ()
        start, stop = _extent(memory)
        held = self._held.get(_storage(memory), ())
        return tuple(r.write for r in held if r.start < stop and start < r.stop)

    def current_phase(self) -> str:
        """forward, backward or optimizer; what a checkpointed region computes again belongs to forward."""
        in_backward = self.progress.phase == "forward" and torch._C._current_autograd_node() is not None
        return "backward" if in_backward and not recomputes(sys._getframe(1)) else self.progress.phase

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and record what it wrote if that is non-finite."""
        kwargs = kwargs or {}
        self._operations += 1
        before = copies(func, args, kwargs)
        # Most operations write finite numbers. Their operands are looked at only if the operation may overwrite them.
        overwrites = bool(schema(func).written) or not schema(func).trusted
        reads = self._reads(func, args, kwargs, before) if overwrites else None
        result = func(*args, **kwargs)
        zero_introduced(func, before, args, kwargs, result, self._ablated.get(self._operations, ()))
        allocates = schema(func).name in _ALLOCATIONS
        for which, (place, tensor) in enumerate(written_tensors(func, args, kwargs, result)):
            if allocates:
                self._unwritten.add(_storage(tensor))
            else:
                self._unwritten.discard(_storage(tensor))
            if allocates or is_finite(tensor):
                self._release(tensor)
            else:
                reads = self._reads(func, args, kwargs, before) if reads is None else reads
                read = [r for r in reads if place is None or r.place in (place, None)]
                self._note(func, before, read, which, tensor)
        self._lineages.note(func, args, kwargs, result)
        return result

    def _reads(self, func: Any, args: Any, kwargs: Any, before: tuple[Any, Any]) -> list[Read]:
        reads = []
        for (name, place, tensor), (_, _, copy) in zip(
            operands(func, args, kwargs), operands(func, *before), strict=True
        ):
            label = self._label(name, place, tensor)
            writes = self._writers(tensor)
            # The writes may lie between the elements of a view, or in memory that was freed and reused since.
            if writes and is_finite(copy):
                writes = ()
            reads.append(Read(label, place, wide(copy), writes, self._lineages.of(tensor)))
        return reads

    def _note(self, func: Any, before: tuple[Any, Any], reads: list[Read], which: int, tensor: Tensor) -> None:
        """Record a write of non-finite values: the earlier writes it passed on, and its producer if some are new."""
        written = wide(tensor)
        nan = bool(written.isnan().any())
        if not self._passes_on(nan, reads):
            reads = [self._with_preexisting(read) for read in reads]
        graver = written.isnan() if nan else written.isinf()
        new = newly_nonfinite(func, [read.tensor for read in reads], written)
        producer = self._producer(func, before, reads, which, tensor, _either(new & graver, new)) if new.any() else None
        last = tuple(dict.fromkeys(read.write for read in reads if read.write is not None))
        everything = tuple(dict.fromkeys(write for read in reads for write in read.writes))
        reads_preexisting = any(self.writes[write].preexisting for write in everything)
        write = Write(
            op=str(func),
            nan=nan,
            sources=_sources(reads, written, _first(_either(graver & ~new, graver))) or last,
            reads=everything,
            producer=producer,
            causes=_sources(reads, written, producer.first_index) if producer and schema(func).elementwise else last,
            place=self.places.here() if reads_preexisting else None,
            at=(self._operations, which),
        )
        self._hold(tensor, write)

    def _passes_on(self, nan: bool, reads: list[Read]) -> bool:
        """Whether an earlier write explains what was written: a NaN needs a NaN, an infinity anything non-finite."""
        read_writes = [self.writes[read.write] for read in reads if read.write is not None]
        return any(write.nan for write in read_writes) if nan else bool(read_writes)

    def _with_preexisting(self, read: Read) -> Read:
        """The operand; a non-finite one that nothing wrote in this step (a constant) gets a preexisting write."""
        if read.write is not None or is_finite(read.tensor):
            return read
        unwritten = _storage(read.tensor) in self._unwritten
        name = f"{read.label} (memory that was allocated and never written)" if unwritten else read.label
        return replace(read, writes=(self._hold_preexisting(name, read.tensor),))

    def _hold_preexisting(self, name: str, tensor: Tensor) -> int:
        nan, negative = bool(wide(tensor).isnan().any()), is_negative(tensor)
        return self._hold(tensor, Write("", nan, preexisting=name, negative=negative))

    def _producer(
        self, func: Any, before: tuple[Any, Any], reads: list[Read], which: int, tensor: Tensor, new: Tensor
    ) -> Producer:
        indices, first = new.nonzero(), _first(new)
        rows = indices[:, :-1].unique(dim=0) if tensor.dim() > 1 else indices
        scalars = tuple(x for x in tree_leaves(before) if type(x) is float and not math.isfinite(x))
        nan_scalar = any(map(math.isnan, scalars))
        # 0 * -inf in the model is the operation's mistake, but a learning rate of inf is a non-finite input.
        mistaken = self.progress.phase != "optimizer" and bool(wide(tensor)[first].isnan()) and not nan_scalar
        given = bool(scalars) and not mistaken
        return Producer(
            phase=self.current_phase(),
            micro_batch=self.progress.micro_batch,
            place=self.places.here(),
            kind=NONFINITE_INPUT if given else ieee_kind(func, *before, wide(tensor), which, first),
            operands=measured_operands(func, before, reads, tensor, first, self._lineages),
            output=measure(self._label("", None, tensor), tensor),
            first_index=first,
            bad_rows=tuple(tuple(int(i) for i in row) for row in rows[:MOST_ROWS].tolist()),
            columns=shared_columns(new),
            scalars=scalars,
            negative=is_negative(tensor),
            masked=any(is_masked(read.tensor, tensor, dimension_of(func, before), first) for read in reads),
            intentional=bool(scalars) and any(fill in schema(func).name for fill in _FILLS),
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
        """Forget the writes that are now overwritten completely; a fresh tensor may reuse a freed address."""
        held = self._held.get(_storage(tensor))
        if not held:
            return
        (start, stop), steps = _extent(tensor), _steps(tensor)
        # A dense tensor overwrites every byte of its range. One with gaps, such as a column, leaves its neighbours
        # as they were: it replaces only a write that lies within it with the same start and strides.
        dense = tensor.numel() * tensor.element_size() == stop - start
        held[:] = [
            r
            for r in held
            if not (start <= r.start and r.stop <= stop and (dense or (r.start, r.steps) == (start, steps)))
        ]


def _first(mask: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in mask.nonzero()[0])


def _either(mask: Tensor, otherwise: Tensor) -> Tensor:
    return mask if mask.any() else otherwise


def _sources(reads: list[Read], written: Tensor, index: tuple[int, ...]) -> tuple[int, ...]:
    """The writes read by an operation; if its operands broadcast, only those that are non-finite at `index`."""
    held = [(read.write, read.tensor) for read in reads if read.write is not None]
    try:
        sources = [write for write, tensor in held if not tensor.expand(written.shape)[index].isfinite()]
    except RuntimeError:  # no broadcast: a product, a reduction
        sources = [write for write, _ in held]
    return tuple(dict.fromkeys(sources))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Start and end of the part of the storage that the tensor covers, in bytes."""
    size = tensor.element_size()
    start = tensor.storage_offset()
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(start * size), int((start + reach + 1) * size)


def _steps(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    return tuple((n, stride) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
