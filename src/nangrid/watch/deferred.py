"""Checks the steps of a run on a GPU without synchronising.

Each check of a step leaves one number on the device. The numbers are copied to pinned memory behind the step's last
kernel and read after the next steps have been queued, so a failure is noticed up to two steps late. One snapshot is
kept for every step in flight, and the failing step is replayed from its own: there the parameters are still clean,
whatever the optimizer has done to them since.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nangrid.watch.autopsy.examine import Background
from nangrid.watch.autopsy.live import LiveStep
from nangrid.watch.autopsy.replay import Step, digest
from nangrid.watch.clocks import StepReading, Trainables, larger
from nangrid.watch.inspector import Inspector
from nangrid.watch.pending import Numbers, PendingStep, Update
from nangrid.watch.ranks.group import Ranks, ranks_of_this_run
from nangrid.watch.state.recorder import Recorder, SnapshotPolicy
from nangrid.watch.state.scaler import NO_SCALE
from nangrid.watch.state.snapshot import Snapshot
from nangrid.watch.state.tensors import extent, gradients, state_tensors

IN_FLIGHT = 2
"""Steps that may be queued before the host waits for the numbers of the oldest."""


class DeferredInspector(Inspector):
    """An inspector that never waits for the current step; it reports a non-finite count of 1 for "at least one"."""

    late = True

    def __init__(
        self,
        step: Step,
        out_dir: Path | None,
        background: Background,
        policy: SnapshotPolicy | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(step, out_dir, background, policy, ranks)
        initial = self.recorder.initial
        model, optimizer, scaler = step.model, step.optimizer, step.scaler
        spares = [Recorder(model, step.trainables, optimizer, scaler, initial) for _ in range(IN_FLIGHT)]
        # A step in flight needs its own copies until its numbers are known: one recorder more than steps in flight.
        self._recorders = deque([self.recorder, *spares])
        self._sent: deque[PendingStep] = deque()
        self._early: list[StepReading] = []
        """Readings of steps that had to be waited for, and that no call has returned yet."""
        self._pending: PendingStep

    def begin(self, step: int) -> None:
        """Begin a step, with the recorder that has been unused the longest."""
        self._recorders.rotate(-1)
        self._pending = PendingStep(step, self._recorders[0])
        self._pending.recorder.begin(step)

    def restart(self) -> None:
        """Begin the step again with the next micro-batch."""
        self._pending.updates.clear()
        self._pending.updates.append(Update())
        self._pending.recorder.restart()

    def micro_batch(self, inputs: Any, **extra: Any) -> None:
        """Keep a micro-batch that is about to run."""
        self._pending.recorder.micro_batch(inputs, **extra)

    def loss(self, loss: Tensor) -> None:
        """Keep the loss of a micro-batch."""
        self._pending.update.losses.append(loss.detach())

    def left(self) -> None:
        """Examine the current step, whose numbers were never sent."""
        self.recorder, self._losses = self._pending.recorder, self._pending.update.losses
        super().left()

    @torch.no_grad()
    def after_backward(self, losses: Sequence[Tensor]) -> None:
        """Measure the gradients before the loop can mend them."""
        self._pending.update.measure("unmended", extent(gradients(self.step.trainables).values()))

    def losses(self, losses: Sequence[Tensor], of: Trainables) -> None:
        """Keep the losses of a loop; whether their gradients were mended is known later."""
        self._pending.update.losses += [loss.detach() for loss in losses]

    @torch.no_grad()
    def gradients(
        self, scale: Tensor | float = NO_SCALE, of: Trainables | None = None, clipped: Tensor | float | None = None
    ) -> None:
        """Measure the gradients."""
        self._pending.recorder.copy_new_trainables()
        by_name = gradients(self.step.trainables if of is None else of)
        self.clocks.note_reached(by_name)
        self._warn_without_gradient()
        self._pending.update.measure("gradient", extent(by_name.values()) * (1.0 if clipped is None else clipped))
        if isinstance(scale, Tensor) or scale != NO_SCALE:  # a number would be copied to the device at every step
            self._pending.update.measure("scale", torch.as_tensor(scale))

    def norm(self, norm: Tensor | float) -> None:
        """Keep the gradient norm before clipping."""
        self._pending.update.measures["norm"] = torch.as_tensor(norm)

    @torch.no_grad()
    def updated(self, of: Trainables | None = None) -> None:
        """Measure parameters and optimizer state."""
        update, trainables = self._pending.update, self.step.trainables if of is None else of
        before = self._pending.recorder.before(trainables)
        assert before is not None, "a deferred inspector keeps copies"
        update.measure("update", self.clocks.update(before, trainables))
        update.measure("parameter", extent(trainables.values()))
        update.measure("optimizer_state", extent(state_tensors(self.step.optimizer)))
        update.complete = True

    def close(self, lr: float, seconds: float) -> list[StepReading]:
        """Send the step's numbers; the readings of the steps that are no longer in flight."""
        self._pending.lr, self._pending.seconds = lr, seconds
        self._pending.send()
        self._sent.append(self._pending)
        self._keep(self._pending.step, self._pending.recorder)
        return self._read(IN_FLIGHT)

    def flush(self) -> list[StepReading]:
        """Wait for the numbers of all steps; their readings."""
        return self._read(0)

    def skipped(self, losses: Sequence[Tensor]) -> None:
        """Wait for the steps before, and see whether the current one fails with a scale of 1 as well."""
        self._early = self._read(0)
        if self.clocks.onset is None:
            self.recorder, self._losses = self._pending.recorder, []
            self.clocks.begin(self._pending.step)
            super().skipped(losses)
        if self.clocks.onset is None:
            self.clocks.readings.pop()  # the step continues with the next batch

    def _read(self, in_flight: int) -> list[StepReading]:
        readings, self._early = self._early, []
        while len(self._sent) > in_flight:
            pending = self._sent.popleft()
            self._note(pending, pending.receive())
            readings.append(self.clocks.reading)
        return readings

    def _note(self, pending: PendingStep, numbers: list[Numbers]) -> None:
        clocks = self.clocks
        clocks.begin(pending.step)
        clocks.reading.lr, clocks.reading.seconds = pending.lr, pending.seconds
        skipped, losses = False, []
        for update, found in zip(pending.updates, numbers, strict=True):
            losses += update.losses
            skipped = self._note_update(found) or skipped
            if clocks.onset is not None:
                break  # the next optimizer of the step has read what this one left
        self.growth.note(pending.step, clocks.reading.max_gradient)
        self._examine_late(pending.recorder, losses, skipped)

    def _note_update(self, found: Numbers) -> bool:
        """Note the numbers of one optimizer; whether a GradScaler has skipped it."""
        reading, sizes = self.clocks.reading, found.measures
        gradient, losses = sizes.get("gradient", 0.0), found.losses
        # A loop that mends or drops the gradients of a non-finite loss trains on.
        if math.isfinite(gradient) and not math.isfinite(sizes.get("unmended", 0.0)):
            losses = [loss for loss in losses if math.isfinite(loss)]
        for loss in losses:
            self.clocks.note_loss(loss)
        reading.max_gradient = larger(reading.max_gradient, gradient)
        reading.max_update = larger(reading.max_update, sizes.get("update", 0.0))
        reading.grad_norm = sizes.get("norm", reading.grad_norm)
        searching = sizes.get("scale", NO_SCALE) > 1
        for clock in ("parameter", "optimizer_state") if searching else ("gradient", "parameter", "optimizer_state"):
            if not math.isfinite(sizes.get(clock, 0.0)):
                self.clocks.trip(clock, 1)
        return searching and self._anywhere(not math.isfinite(gradient))

    def _live(self, snapshot: Snapshot) -> LiveStep:
        # By now the live model is some steps further.
        return LiveStep()

    def _examine_late(self, recorder: Recorder, losses: list[Tensor], skipped: bool) -> None:
        # Only the losses can be compared: gradients and parameters have been overwritten by later steps.
        self.recorder, self._losses = recorder, losses
        self._skips(skipped)
        self._agree()
        if self._tripped_now("loss", "gradient", "parameter", "optimizer_state"):
            self._examine({"loss": digest(losses)})
        elif self.clocks.reading.frozen:
            self._keep_frozen({"loss": digest(losses)})


def inspector_for(
    step: Step, out_dir: Path | None, background: Background, policy: SnapshotPolicy | None = None
) -> Inspector:
    """The inspector for the device that the trainables are on."""
    # A rank of ZeRO may hold no part of any trainable.
    on_gpu = any(parameter.is_cuda for parameter in step.trainables.values() or step.model.parameters())
    # Without copies a failing update must be stopped before it, and that needs its numbers at once.
    late = on_gpu and not (policy and policy.light)
    return (DeferredInspector if late else Inspector)(step, out_dir, background, policy, ranks_of_this_run())
