"""Runs a step with zeros in place of chosen non-finite numbers, to see whether the step still fails."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from nangrid.watch.autopsy.introduced import copies, newly_nonfinite
from nangrid.watch.autopsy.operands import operands, written_tensors
from nangrid.watch.state.tensors import is_finite, wide


class Ablation(TorchDispatchMode):
    """Replaces what chosen writes made non-finite by zeros; see `Write.at` for how a write is addressed.

    Operations are counted as the tracer counts them.
    """

    def __init__(self, ablated: Collection[tuple[int, int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ablated = ablated
        self._ablated_operations = {number for number, _ in ablated}
        self._operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and zero what it made non-finite, if it is one of the chosen."""
        kwargs = kwargs or {}
        self._operations += 1
        if self._operations not in self._ablated_operations:
            return func(*args, **kwargs)
        # Operands from before the call: an in-place operation overwrites them.
        before = copies(func, args, kwargs)
        result = func(*args, **kwargs)
        for which, (place, tensor) in enumerate(written_tensors(func, args, kwargs, result)):
            if (self._operations, which) in self.ablated and not is_finite(tensor):
                read = [wide(t) for _, at, t in operands(func, *before) if place is None or at in (place, None)]
                tensor.masked_fill_(newly_nonfinite(func, read, wide(tensor)), 0)
        return result
