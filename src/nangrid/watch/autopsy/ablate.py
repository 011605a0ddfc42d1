"""What would the step have done without some of its non-finite numbers?"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from nangrid.watch.autopsy.ieee import operands, written_tensors
from nangrid.watch.autopsy.introduced import copies, is_finite, newly_nonfinite, wide


class Ablation(TorchDispatchMode):
    """Zeros in the place of what was born in some writes, each an operation's number in the step and a result of it.

    Operations are counted as the tracer counts them.
    """

    def __init__(self, ablated: Collection[tuple[int, int]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ablated = ablated
        self._among = {number for number, _ in ablated}
        self._operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and mend what it wrote."""
        kwargs = kwargs or {}
        self._operations += 1
        if self._operations not in self._among:
            return func(*args, **kwargs)
        before = copies(func, args, kwargs)
        result = func(*args, **kwargs)
        for which, (place, tensor) in enumerate(written_tensors(func, args, kwargs, result)):
            if (self._operations, which) in self.ablated and not is_finite(tensor):
                read = [wide(t) for _, at, t in operands(func, *before) if place is None or at in (place, None)]
                tensor.masked_fill_(newly_nonfinite(func, read, wide(tensor)), 0)
        return result
