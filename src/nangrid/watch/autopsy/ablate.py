"""Runs a step with zeros in place of chosen non-finite numbers, to see whether the step still fails."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from nangrid.watch.autopsy.introduced import copies, newly_nonfinite
from nangrid.watch.autopsy.operands import operands, written_tensors
from nangrid.watch.state.tensors import is_finite, wide

Writes = Collection[tuple[int, int]]
"""Writes, as `Write.at` addresses them: the number of the operation, and which of its outputs."""


class Ablation(TorchDispatchMode):
    """Replaces what chosen writes made non-finite by zeros.

    Operations are counted as the tracer counts them.
    """

    def __init__(self, ablated: Writes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._outputs = outputs_by_operation(ablated)
        self._operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and zero what it made non-finite, if it is one of the chosen."""
        kwargs = kwargs or {}
        self._operations += 1
        outputs = self._outputs.get(self._operations, set())
        # Operands from before the call: an in-place operation overwrites them.
        before = copies(func, args, kwargs) if outputs else ((), {})
        result = func(*args, **kwargs)
        zero_introduced(func, before, args, kwargs, result, outputs)
        return result


def outputs_by_operation(writes: Writes) -> dict[int, set[int]]:
    """The outputs among the writes, by the number of their operation."""
    outputs: dict[int, set[int]] = {}
    for number, which in writes:
        outputs.setdefault(number, set()).add(which)
    return outputs


def zero_introduced(
    func: Any, before: tuple[Any, Any], args: Any, kwargs: Any, result: Any, outputs: Collection[int]
) -> None:
    """Zero, in these outputs of an operation that has run, what is non-finite though its operands `before` were not."""
    if not outputs:
        return
    for which, (place, tensor) in enumerate(written_tensors(func, args, kwargs, result)):
        if which in outputs and not is_finite(tensor):
            read = [wide(t) for _, at, t in operands(func, *before) if place is None or at in (place, None)]
            tensor.masked_fill_(newly_nonfinite(func, read, wide(tensor)), 0)
