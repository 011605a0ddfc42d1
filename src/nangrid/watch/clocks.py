"""At which step did each clock first show a non-finite value?

One pass of `torch.aminmax` over each tensor is both the check (a NaN or infinity survives it) and the
magnitude that is recorded; a count of non-finite elements is made only when that pass alarms. The size of the
update and the parameter check are one such pass, over the difference to the weights before the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nangrid.records.cell import CLOCKS, Onset, earliest_onset
from nangrid.watch.state.tensors import gradients, state_tensors

STEPS_AFTER_ONSET = 3
"""How long a run goes on after its onset for the loss clock, the one a user sees."""


@dataclass
class StepReading:
    """What the watch saw of one optimizer step; non-finite elements are counted per clock."""

    step: int
    loss: float = math.nan
    grad_norm: float = math.nan
    """Before clipping, as the trainer computed it."""
    lr: float = math.nan
    max_gradient: float = 0.0
    """Largest |element| of the unscaled gradients before clipping."""
    max_update: float = 0.0
    """Largest |change| of a trainable in this step."""
    eval_loss: float | None = None
    seconds: float = 0.0
    nonfinite: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CLOCKS, 0))

    @property
    def frozen(self) -> bool:
        """Whether clipping multiplied this step's finite gradients by 1 / inf (pytorch/pytorch#46849)."""
        return math.isinf(self.grad_norm) and not self.nonfinite["gradient"]


def extent(tensors: Iterable[Tensor]) -> Tensor:
    """Largest absolute value over all elements, on their device: NaN or inf as soon as one is not finite."""
    real = (torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors)
    ends = [end for tensor in real if tensor.numel() for end in torch.aminmax(tensor)]
    if not ends:
        return torch.zeros(())
    # of a model spread over several devices, or over several dtypes
    wide = torch.float64 if any(end.dtype is torch.float64 for end in ends) else torch.float32
    together = [end.to(ends[0].device, wide, non_blocking=True) for end in ends]
    return torch.stack(together).abs().max()


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(int((~torch.isfinite(t)).sum()) for t in tensors)


class Clocks:
    """Watches the trainables, which may grow in number, and the optimizer of one run, step by step.

    Call `begin`, `micro_batch` for each loss, `gradients` before clipping, `updated` after the optimizer
    step, and `evaluated` if there was an evaluation; `readings` and `first` hold what was seen.
    """

    def __init__(self, trainables: Mapping[str, torch.nn.Parameter]) -> None:
        self.trainables = trainables
        self.readings: list[StepReading] = []
        self.first: dict[str, int | None] = dict.fromkeys(CLOCKS)
        self._reached: set[str] = set()

    @property
    def reading(self) -> StepReading:
        """The step under way, or the last one."""
        return self.readings[-1]

    def begin(self, step: int) -> None:
        """Open a step."""
        self.readings.append(StepReading(step, loss=0.0))

    def micro_batch(self, loss: Tensor) -> None:
        """Add the loss of one micro-batch, as scaled for accumulation."""
        self.note_loss(loss.detach().float().item())

    def note_loss(self, loss: float) -> None:
        """The same, of a loss that is on the host already."""
        self.reading.loss += loss
        if not math.isfinite(self.reading.loss):
            self.ring("loss", 1)

    def note_reached(self, found: Mapping[str, Tensor]) -> None:
        """These trainables have a gradient."""
        self._reached.update(found)

    @torch.no_grad()
    def gradients(self, ignore_nonfinite: bool = False) -> None:
        """Check the unscaled gradients of the whole accumulation window, before clipping smears them.

        `ignore_nonfinite`: a GradScaler still looks for its scale, and skips this step by itself.
        """
        found = gradients(self.trainables)
        self.note_reached(found)
        self.reading.max_gradient = extent(found.values()).item()
        if not math.isfinite(self.reading.max_gradient) and not ignore_nonfinite:
            self.ring("gradient", _count(found.values()))

    @torch.no_grad()
    def updated(self, optimizer: torch.optim.Optimizer, before: list[Tensor]) -> None:
        """Check trainables and floating-point optimizer state right after the optimizer step.

        `before`: the trainables as they were before it, in their order.
        """
        self.reading.max_update = self.update(before).item()
        if not math.isfinite(self.reading.max_update):
            self.ring("parameter", _count(self.trainables.values()))
        state = list(state_tensors(optimizer))
        if not math.isfinite(extent(state).item()):
            self.ring("optimizer_state", _count(state))

    @torch.no_grad()
    def update(self, before: list[Tensor]) -> Tensor:
        """Largest |change| of a trainable, on its device; NaN or inf also where a trainable is not finite."""
        return extent(now - then for now, then in zip(self.trainables.values(), before, strict=True))

    def evaluated(self, eval_loss: float) -> None:
        """Note the loss of an evaluation that ran right after the current step."""
        self.reading.eval_loss = eval_loss
        if not math.isfinite(eval_loss):
            self.ring("eval_loss", 1)

    def ring(self, clock: str, count: int) -> None:
        """Note `count` non-finite values in the current step, the first of which rings the clock."""
        # An extent overflows where no element does (a sum of losses, a difference in fp16): count decides.
        if count:
            self.reading.nonfinite[clock] = count
            if self.first[clock] is None:
                self.first[clock] = self.reading.step

    @property
    def onset(self) -> Onset | None:
        """The earliest (step, clock), or None while everything is finite."""
        return earliest_onset(self.first)

    @property
    def done(self) -> bool:
        """Whether nothing more is to be learned: the loss clock rang, or time after the onset is up."""
        if self.onset is None:
            return False
        return self.first["loss"] is not None or self.reading.step >= self.onset.step + STEPS_AFTER_ONSET

    @property
    def frozen_from(self) -> int | None:
        """First step of an unbroken run of frozen steps up to the last one."""
        frozen_from = None
        for reading in reversed(self.readings):
            if not reading.frozen:
                break
            frozen_from = reading.step
        return frozen_from

    @property
    def without_gradient(self) -> list[str]:
        """Trainables that no backward pass ever reached."""
        return [name for name in self.trainables if name not in self._reached]
