"""Records the first step at which each clock shows a non-finite value.

One pass of `torch.aminmax` over each tensor is both the check (NaN and infinity survive it) and the magnitude that is
recorded. Non-finite elements are counted only when that pass finds some. The size of the update and the parameter
check share one such pass, over the difference to the weights before the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nangrid.records.cell import CLOCKS, Onset, earliest_onset
from nangrid.watch.state.tensors import extent, gradients, local, state_tensors

Trainables = Mapping[str, torch.nn.Parameter]

STEPS_AFTER_ONSET = 3
"""Steps that a run continues after its onset, waiting for the loss clock: the one a user sees."""


@dataclass
class StepReading:
    """The numbers that the watch records for one optimizer step."""

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
    """Number of non-finite elements per clock."""

    @property
    def frozen(self) -> bool:
        """Whether the gradients are finite but their norm is inf, so that clipping multiplied them by zero."""
        # https://github.com/pytorch/pytorch/issues/46849
        # Infinite gradients of a GradScaler that searches its scale trip no clock, and are no frozen step.
        return math.isinf(self.grad_norm) and math.isfinite(self.max_gradient) and not self.nonfinite["gradient"]


def larger(one: float, other: float) -> float:
    """The larger of two sizes; one that is not finite counts as the largest."""
    return max(one, other) if math.isfinite(one) and math.isfinite(other) else one + other


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(int((~torch.isfinite(local(t))).sum()) for t in tensors)


class Clocks:
    """Checks the trainables, whose number may grow, and the optimizer of one run at every step.

    Call `begin`, `micro_batch` for each loss, `gradients` before clipping, `updated` after the optimizer step, and
    `evaluated` after an evaluation. `readings` has one entry per step, `first` the step at which each clock tripped.
    """

    def __init__(self, trainables: Trainables) -> None:
        self.trainables = trainables
        self.readings: list[StepReading] = []
        self.first: dict[str, int | None] = dict.fromkeys(CLOCKS)
        self._reached: set[str] = set()

    @property
    def reading(self) -> StepReading:
        """The current step, or the last one."""
        return self.readings[-1]

    def begin(self, step: int) -> None:
        """Open a step."""
        self.readings.append(StepReading(step, loss=0.0))

    def micro_batch(self, loss: Tensor) -> None:
        """Add the loss of one micro-batch, as scaled for accumulation."""
        self.note_loss(loss.detach().float().item())

    def note_loss(self, loss: float) -> None:
        """Add a loss that is on the host already."""
        self.reading.loss += loss
        if not math.isfinite(self.reading.loss):
            self.trip("loss", 1)

    def note_reached(self, gradients: Mapping[str, Tensor]) -> None:
        """Mark the trainables that have a gradient."""
        self._reached.update(gradients)

    @torch.no_grad()
    def gradients(self, ignore_nonfinite: bool = False, of: Trainables | None = None, clipped: float = 1.0) -> None:
        """Check the unscaled gradients of the whole accumulation window, before clipping spreads a NaN to all.

        `ignore_nonfinite`: a GradScaler is still searching for its scale and skips this step by itself. `of`: the
        trainables of the optimizer under way, where there are several. `clipped`: what clipping divided them by.
        """
        by_name = gradients(self.trainables if of is None else of)
        self.note_reached(by_name)
        largest = extent(by_name.values()).item() * clipped
        self.reading.max_gradient = larger(self.reading.max_gradient, largest)
        if not math.isfinite(largest) and not ignore_nonfinite:
            self.trip("gradient", _count(by_name.values()))

    @torch.no_grad()
    def updated(
        self, optimizer: torch.optim.Optimizer, before: Sequence[Tensor] | None, of: Trainables | None = None
    ) -> None:
        """Check trainables and floating-point optimizer state right after the optimizer step.

        `before`: the values of the trainables before that step, in the same order; None if they were not kept.
        """
        trainables = self.trainables if of is None else of
        largest = extent(trainables.values()).item() if before is None else self.update(before, trainables).item()
        self.reading.max_update = math.nan if before is None else larger(self.reading.max_update, largest)
        if not math.isfinite(largest):
            self.trip("parameter", _count(trainables.values()))
        state = list(state_tensors(optimizer))
        if not math.isfinite(extent(state).item()):
            self.trip("optimizer_state", _count(state))

    @torch.no_grad()
    def update(self, before: Sequence[Tensor], of: Trainables | None = None) -> Tensor:
        """Largest |change| of a trainable, on its device; NaN or inf also where a trainable is not finite."""
        trainables = self.trainables if of is None else of
        return extent(local(now) - then for now, then in zip(trainables.values(), before, strict=True))

    def evaluated(self, eval_loss: float) -> None:
        """Record the loss of an evaluation that ran right after the current step."""
        self.reading.eval_loss = eval_loss
        if not math.isfinite(eval_loss):
            self.trip("eval_loss", 1)

    def trip(self, clock: str, count: int) -> None:
        """Record `count` non-finite values in the current step; the first of a run trips the clock."""
        # A difference of two float16 weights can overflow although both are finite: then the count is 0.
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
        """Whether the run can stop: the loss clock has tripped, or the steps after the onset are used up."""
        if self.onset is None:
            return False
        # Gradients and parameters may be non-finite for some steps before the loss shows it.
        return self.first["loss"] is not None or self.reading.step >= self.onset.step + STEPS_AFTER_ONSET

    @property
    def frozen_from(self) -> int | None:
        """The first of the frozen steps at the end of the run; None if the last step was not frozen."""
        frozen_from = None
        for reading in reversed(self.readings):
            if not reading.frozen:
                break
            frozen_from = reading.step
        return frozen_from

    @property
    def without_gradient(self) -> list[str]:
        """Trainables that no backward pass has reached."""
        return [name for name in self.trainables if name not in self._reached]
