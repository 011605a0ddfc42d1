"""Computes the failing step in other ways, and says in one sentence what that shows.

At most 12 steps are run. The failing operation alone costs none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from nangrid.records.autopsy import Trial
from nangrid.watch.autopsy.experiments.call import Call
from nangrid.watch.autopsy.replay import EAGER, Replay, Step, rerun
from nangrid.watch.state.snapshot import Snapshot
from nangrid.watch.state.tensors import dtype_name

logger = logging.getLogger(__name__)

MOST_STEPS = 12
SLOW_S = 5.0
"""A slower step reports its progress, so that nobody at the terminal takes the run for stuck."""
_AGAIN, _COMPILED, _ZEROS, _NANS = "the step again", "compiled, as it was", "zeros in new memory", "NaN in new memory"
_BACKENDS = {
    "math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}  # fmt: skip
_ON_CPU = "the operation alone on the CPU"
_ALLOCATORS = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (Tensor, "new_empty"))


class Variants:
    """Tries variants of one failing step until the steps are used up; `trials` in the order in which they ran."""

    def __init__(self, step: Step, snapshot: Snapshot, replayed: Replay) -> None:
        self.step, self.snapshot, self.replayed = step, snapshot, replayed
        self.trials: list[Trial] = []
        self.same_bits = True
        self.only_compiled = False
        """Whether the compiled graph fails as the live run did, and the eager replay does not."""
        self.steps_left = MOST_STEPS

    def run(self, op: str, call: Call | None, compiled: bool, micro_batch: int) -> None:
        """Try everything that applies to this origin."""
        if call is not None:
            self._alone(call)
        if compiled:
            ran = self._try(_COMPILED, stance="default")
            self.only_compiled = ran is not None and ran.clock == self.snapshot.clock != self.replayed.clock
        if self.replayed.clock is None or self.only_compiled:
            return
        for _ in range(2):
            again = self._try(_AGAIN)
            self.same_bits = self.same_bits and (again is None or again.outcome == self.replayed.outcome)
        self._try(_ZEROS, _memory_of(0.0))
        self._try(_NANS, _memory_of(float("nan")))
        if "attention" in op:
            for name, backend in _BACKENDS.items():
                self._try(f"{name} attention", sdpa_kernel([backend]))
        if set(self.snapshot.outcome) != {"parameters"}:  # an update that is replayed alone reads no batch
            self._part_of_the_batch(micro_batch)

    def finite(self, change: str) -> bool | None:
        """Whether every step with this change was finite; None if there was none."""
        found = [trial.finite for trial in self.trials if trial.change == change]
        return all(found) if found else None

    def verdict(self) -> str:
        """What the trials show, in one sentence; empty if they show nothing."""
        kernels = [name for name in _BACKENDS if self.finite(f"{name} attention") is False]
        others = [name for name in _BACKENDS if self.finite(f"{name} attention")]
        parts = [trial.change for trial in self.trials if " alone: " in trial.change and not trial.finite]
        if self.only_compiled and self.replayed.clock is not None:
            return (
                f"Only the compiled graph fails in the {self.snapshot.clock}: when the same step runs eagerly, it "
                f"fails in the {self.replayed.clock}, at the origin above."
            )
        if self.replayed.clock is None:
            compiled = "Only the compiled graph fails: the same step is finite when it runs eagerly."
            return compiled if self.only_compiled else ""
        if not self.same_bits:
            return (
                "The same step gave other bits when it ran again: it is not deterministic, it changes something that "
                "no replay puts back, or the hardware is faulty."
            )
        if self.finite(_ZEROS) and self.finite(_NANS) is False:
            return "It reads memory that was never written: with zeros in new memory the step is finite."
        if kernels and others:
            return f"Only the {' and '.join(kernels)} attention kernel fails: the step is finite with {others[0]}."
        if self.finite(_ON_CPU):
            return "Only the GPU's kernel fails: the operation alone is finite on the CPU."
        if self.finite("the operation alone in float32"):
            return "Half precision is too narrow: the operation alone is finite in float32."
        return f"A part of the batch is enough: {parts[-1].split(' alone: ')[1]}." if parts else ""

    def _try(
        self, change: str, mode: AbstractContextManager[Any] | None = None, snapshot: Snapshot | None = None,
        stance: str = EAGER,
    ) -> Replay | None:  # fmt: skip
        if self.steps_left == 0:
            return None
        self.steps_left -= 1
        began = time.perf_counter()
        try:
            ran = rerun(self.step, snapshot or self.snapshot, mode, stance)
        except Exception:  # a backend that is not there, or a loop that does not take a part of its batch
            return None
        self.trials.append(Trial(change, ran.clock is None))
        if (seconds := time.perf_counter() - began) > SLOW_S:
            number, found = MOST_STEPS - self.steps_left, "finite" if ran.clock is None else "not finite"
            logger.warning("run %d of at most %d, %s: %s (%.0f s)", number, MOST_STEPS, change, found, seconds)
        return ran

    def _alone(self, call: Call) -> None:
        if any(tensor.is_cuda for tensor in call.tensors()):
            on_cpu = call.mapped(Tensor.cpu)
            if on_cpu.run() is not None:
                self.trials.append(Trial(_ON_CPU, not on_cpu.fails()))
        half = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in call.tensors())
        for dtype in (torch.float32, torch.float64) if half else (torch.float64,):
            wide = call.mapped(lambda tensor, to=dtype: tensor.to(to) if tensor.is_floating_point() else tensor)
            if wide.run() is not None:
                self.trials.append(Trial(f"the operation alone in {dtype_name(dtype)}", not wide.fails()))

    def _part_of_the_batch(self, number: int) -> None:
        """The failing micro-batch of several alone; then halves of it, until one sample fails alone."""
        parts = self.snapshot
        if len(parts.micro_batches) > 1:
            parts = replace(parts, micro_batches=[parts.micro_batches[number]])
            if not self._fails(f"a micro-batch alone: micro-batch {number}", parts):
                return
        first, last = 0, _samples(parts.micro_batches[0].inputs)
        while last - first > 1 and self.steps_left:
            middle = (first + last) // 2
            for half in ((first, middle), (middle, last)):
                named = f"sample {half[0]}" if half[1] - half[0] == 1 else f"samples {half[0]} to {half[1] - 1}"
                only = replace(parts, micro_batches=[_sliced(parts.micro_batches[0], *half)])
                if self._fails(f"a part alone: {named} of micro-batch {number}", only):
                    first, last = half
                    break
            else:
                return

    def _fails(self, change: str, snapshot: Snapshot) -> bool:
        ran = self._try(change, snapshot=snapshot)
        return ran is not None and ran.clock == self.replayed.clock


def _samples(inputs: Any) -> int:
    """Size of the first dimension that the tensors of a micro-batch share; 1 if there is none."""
    sizes = {value.shape[0] for value in tree_leaves(inputs) if isinstance(value, Tensor) and value.dim()}
    return sizes.pop() if len(sizes) == 1 else 1


def _sliced(micro_batch: Any, first: int, last: int) -> Any:
    def part(value: Any) -> Any:
        return value[first:last] if isinstance(value, Tensor) and value.dim() else value

    return replace(micro_batch, inputs=tree_map(part, micro_batch.inputs))


@contextmanager
def _memory_of(value: float) -> Iterator[None]:
    """Within the block, memory that torch allocates without writing it holds this value."""

    def filled(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocated(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            with torch.no_grad():
                return tensor.fill_(value) if tensor.is_floating_point() else tensor

        return allocated

    with ExitStack() as patched:
        for owner, name in _ALLOCATORS:
            patched.enter_context(mock.patch.object(owner, name, filled(getattr(owner, name))))
        yield
