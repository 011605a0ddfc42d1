"""Catches the failing operation with its operands while a step is replayed, cut to what is needed to fail."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from nangrid.watch.autopsy.operands import schema, written_tensors
from nangrid.watch.autopsy.producer import dimension_of
from nangrid.watch.state.tensors import wide

_ALONG_A_DIMENSION = ("_softmax", "_log_softmax", "_safe_softmax")
"""Operations whose row must stay whole."""


@dataclass(frozen=True)
class Call:
    """One operation and its operands from before it ran."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    which: int
    """Which of the tensors that it writes is concerned."""

    def run(self) -> Tensor | None:
        """What the operation writes, with its operands left as they are; None if it does not take them."""
        args, kwargs = self.args, self.kwargs
        if self.func._schema.is_mutable:
            args, kwargs = tree_map(_fresh, (args, kwargs))
        try:
            written = written_tensors(self.func, args, kwargs, self.func(*args, **kwargs))
        except Exception:  # kernels refuse operands with many kinds of errors
            return None
        return written[self.which][1] if self.which < len(written) else None

    def fails(self) -> bool:
        """Whether some number of the result is not finite."""
        written = self.run()
        return written is not None and not bool(wide(written).isfinite().all())

    def tensors(self) -> list[Tensor]:
        """All operands that are tensors."""
        return [value for value in tree_leaves((self.args, self.kwargs)) if isinstance(value, Tensor)]

    def size(self) -> int:
        """Bytes of all operands."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    def mapped(self, change: Any) -> Call:
        """The call with `change` applied to every tensor."""
        args, kwargs = tree_map(
            lambda part: change(part) if isinstance(part, Tensor) else part, (self.args, self.kwargs)
        )
        return Call(self.func, args, kwargs, self.which)


class Catch(TorchDispatchMode):
    """Keeps the operation with one number, as the tracer counts; `call` is None until it has run."""

    def __init__(self, at: tuple[int, int], index: tuple[int, ...]) -> None:
        """`at`: `Write.at`; `index`: of the first non-finite element of what it wrote."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.at, self.index = at, index
        self.call: Call | None = None
        self._operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; before the chosen one runs, keep what it reads."""
        kwargs = kwargs or {}
        self._operations += 1
        if self._operations == self.at[0]:
            call = _of_one_place(Call(func, args, kwargs, self.at[1]))
            self.call = _cut(call, self.index).mapped(lambda tensor: tensor.detach().clone())
        return func(*args, **kwargs)


def _fresh(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _of_one_place(call: Call) -> Call:
    """Of an operation on lists of tensors (foreach and fused optimizers) the one place that failed."""
    lists = {len(value) for value in call.args if isinstance(value, list | tuple) and _holds_tensors(value)}
    if len(lists) != 1 or not schema(call.func).name.startswith(("_foreach", "_fused")):
        return call
    (length,) = lists

    def one(value: Any) -> Any:
        several = isinstance(value, list | tuple) and len(value) == length
        return [value[call.which]] if several and call.which < length else value

    alone = Call(call.func, tuple(map(one, call.args)), {name: one(v) for name, v in call.kwargs.items()}, 0)
    return alone if alone.fails() else call


def _holds_tensors(values: Any) -> bool:
    return bool(values) and all(isinstance(value, Tensor) for value in values)


def _cut(call: Call, index: tuple[int, ...]) -> Call:
    """The call on as small a part of its operands as still fails, one dimension of the output after another."""
    written = call.run()
    if written is None:
        return call
    shape = list(written.shape)
    keep = dimension_of(call.func, (call.args, call.kwargs)) % len(shape) if shape else None
    for dim, size in enumerate(shape):
        if size == 1 or (dim == keep and schema(call.func).name in _ALONG_A_DIMENSION):
            continue
        shape[dim] = 1
        narrowed = (part for part in _narrowed(call, dim - len(shape), size, index[dim]) if _gives(part, shape))
        smaller = next(narrowed, None)
        shape[dim] = 1 if smaller else size
        call = smaller or call
    return call if shape else _halved(call)


def _gives(call: Call, shape: list[int]) -> bool:
    written = call.run()
    return written is not None and list(written.shape) == shape and not bool(wide(written).isfinite().all())


def _narrowed(call: Call, dim: int, size: int, at: int) -> Iterator[Call]:
    """The call with this dimension (from the right) cut to one index: in all operands that have it, else in one."""

    def fits(tensor: Tensor) -> bool:
        return tensor.dim() >= -dim and tensor.shape[dim] == size

    yield call.mapped(lambda tensor: tensor.narrow(dim, at, 1) if fits(tensor) else tensor)
    for only in call.tensors():
        if fits(only):
            yield call.mapped(lambda tensor, only=only: tensor.narrow(dim, at, 1) if tensor is only else tensor)


def _halved(call: Call) -> Call:
    """Of an operation whose result is one number: halves of the operands' first dimension, while one of them fails."""
    while True:
        sizes = {tensor.shape[0] for tensor in call.tensors() if tensor.dim()}
        size = max(sizes, default=0)
        if size < 2:
            return call
        middle = math.ceil(size / 2)
        halves = [_part(call, size, slice(0, middle)), _part(call, size, slice(middle, size))]
        smaller = next((half for half in halves if half.fails()), None)
        if smaller is None:
            return call
        call = smaller


def _part(call: Call, size: int, part: slice) -> Call:
    return call.mapped(lambda tensor: tensor[part] if tensor.dim() and tensor.shape[0] == size else tensor)
