"""Checks the steps of a run on a GPU without synchronising.

Each check of a step leaves one number on the device. The numbers are copied to pinned memory behind the step's last
kernel and read after the next steps have been queued, so a failure is noticed up to two steps late. One snapshot is
kept for every step in flight, and the failing step is replayed from its own: there the parameters are still clean,
whatever the optimizer has done to them since.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nangrid.watch.autopsy.examine import Background
from nangrid.watch.autopsy.live import LiveStep
from nangrid.watch.autopsy.replay import Step, digest
from nangrid.watch.clocks import StepReading, Trainables
from nangrid.watch.inspector import Inspector
from nangrid.watch.ranks.group import Ranks, ranks_of_this_run
from nangrid.watch.state.recorder import Recorder, SnapshotPolicy
from nangrid.watch.state.snapshot import Snapshot
from nangrid.watch.state.tensors import extent, gathering_device, gradients, state_tensors

IN_FLIGHT = 2
"""Steps that may be queued before the host waits for the numbers of the oldest."""


@dataclass
class _PendingStep:
    """A step whose numbers have not been read yet."""

    step: int
    recorder: Recorder
    losses: list[Tensor] = field(default_factory=list)
    measures: dict[str, Tensor] = field(default_factory=dict)
    ignore_nonfinite: bool = False
    lr: float = 0.0
    seconds: float = 0.0
    numbers: Tensor | None = None
    event: Any = None

    def measure(self, name: str, size: Tensor) -> None:
        """Note a size; the largest of several counts."""
        known = self.measures.get(name)
        self.measures[name] = size if known is None else torch.maximum(known, size.to(known.device))

    def send(self) -> None:
        """Queue the copy of the numbers to the host, behind the step's kernels."""
        self.measures |= {f"loss {number}": loss for number, loss in enumerate(self.losses)}
        # Parameters may be spread over devices; one stack and one copy need them on one.
        device = gathering_device(self.measures.values())
        sizes = [value.detach().to(device, non_blocking=True).double() for value in self.measures.values()]
        numbers = torch.stack(sizes)
        # Only a copy to pinned memory is asynchronous; the event tells when it has arrived.
        if numbers.is_cuda:
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(
                numbers, non_blocking=True
            )
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.numbers = numbers

    def receive(self) -> dict[str, float]:
        """The numbers, by name; waits until they have arrived."""
        assert self.numbers is not None
        if self.event is not None:
            self.event.synchronize()
        return dict(zip(self.measures, self.numbers.tolist(), strict=True))


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
        self._sent: deque[_PendingStep] = deque()
        self._pending: _PendingStep

    def begin(self, step: int) -> None:
        """Begin a step, with the recorder that has been unused the longest."""
        self._recorders.rotate(-1)
        self._pending = _PendingStep(step, self._recorders[0])
        self._pending.recorder.begin(step)

    def restart(self) -> None:
        """Begin the step again with the next micro-batch."""
        self._pending.losses.clear()
        self._pending.recorder.restart()

    def micro_batch(self, inputs: Any, **extra: Any) -> None:
        """Keep a micro-batch that is about to run."""
        self._pending.recorder.micro_batch(inputs, **extra)

    def loss(self, loss: Tensor) -> None:
        """Keep the loss of a micro-batch."""
        self._pending.losses.append(loss.detach())

    def left(self) -> None:
        """Examine the current step, whose numbers were never sent."""
        self.recorder, self._losses = self._pending.recorder, self._pending.losses
        super().left()

    @torch.no_grad()
    def after_backward(self, losses: Sequence[Tensor]) -> None:
        """Measure the gradients before the loop can mend them."""
        self._pending.measure("unmended", extent(gradients(self.step.trainables).values()))

    def losses(self, losses: Sequence[Tensor], of: Trainables) -> None:
        """Keep the losses of a loop; whether their gradients were mended is known later."""
        self._pending.losses += [loss.detach() for loss in losses]

    @torch.no_grad()
    def gradients(
        self, ignore_nonfinite: bool = False, of: Trainables | None = None, clipped: Tensor | float | None = None
    ) -> None:
        """Measure the gradients."""
        self._pending.recorder.copy_new_trainables()
        by_name = gradients(self.step.trainables if of is None else of)
        self.clocks.note_reached(by_name)
        self._warn_without_gradient()
        self._pending.measure("gradient", extent(by_name.values()) * (1.0 if clipped is None else clipped))
        self._pending.ignore_nonfinite = ignore_nonfinite

    def norm(self, norm: Tensor | float) -> None:
        """Keep the gradient norm before clipping."""
        self._pending.measures["norm"] = torch.as_tensor(norm)

    @torch.no_grad()
    def updated(self, of: Trainables | None = None) -> None:
        """Measure parameters and optimizer state."""
        pending, trainables = self._pending, self.step.trainables if of is None else of
        before = pending.recorder.before(trainables)
        assert before is not None, "a deferred inspector keeps copies"
        pending.measure("update", self.clocks.update(before, trainables))
        pending.measure("parameter", extent(trainables.values()))
        pending.measure("optimizer_state", extent(state_tensors(self.step.optimizer)))

    def close(self, lr: float, seconds: float) -> list[StepReading]:
        """Send the step's numbers; the readings of the steps that are no longer in flight."""
        self._pending.lr, self._pending.seconds = lr, seconds
        self._pending.send()
        self._sent.append(self._pending)
        self._keep(self._pending.step, self._pending.recorder)
        return list(self._read(IN_FLIGHT))

    def flush(self) -> list[StepReading]:
        """Wait for the numbers of all steps; their readings."""
        return list(self._read(0))

    def _read(self, in_flight: int) -> Iterable[StepReading]:
        while len(self._sent) > in_flight:
            pending = self._sent.popleft()
            self._note(pending, pending.receive())
            yield self.clocks.reading

    def _note(self, pending: _PendingStep, numbers: dict[str, float]) -> None:
        clocks = self.clocks
        clocks.begin(pending.step)
        reading = clocks.reading
        losses = [numbers[f"loss {number}"] for number in range(len(pending.losses))]
        # A loop that mends or drops the gradients of a non-finite loss trains on.
        if math.isfinite(numbers["gradient"]) and not math.isfinite(numbers.get("unmended", 0.0)):
            losses = [loss for loss in losses if math.isfinite(loss)]
        for loss in losses:
            clocks.note_loss(loss)
        reading.max_gradient, reading.max_update = numbers["gradient"], numbers["update"]
        reading.grad_norm, reading.lr, reading.seconds = numbers["norm"], pending.lr, pending.seconds
        checked = ["parameter", "optimizer_state"]
        if not pending.ignore_nonfinite:
            checked = ["gradient", *checked]
        for clock in checked:
            if not math.isfinite(numbers[clock]):
                clocks.trip(clock, 1)
        self.growth.note(pending.step, reading.max_gradient)
        self._examine_late(pending)

    def _live(self, snapshot: Snapshot) -> LiveStep:
        # By now the live model is some steps further.
        return LiveStep()

    def _examine_late(self, pending: _PendingStep) -> None:
        # Only the losses can be compared: gradients and parameters have been overwritten by later steps.
        self.recorder, self._losses = pending.recorder, pending.losses
        if pending.ignore_nonfinite and not math.isfinite(self.clocks.reading.max_gradient):
            self.skipped()
        else:
            self._skipping = False
        self._agree()
        if self._tripped_now("loss", "gradient", "parameter", "optimizer_state"):
            self._examine({"loss": digest(pending.losses)})
        elif self.clocks.reading.frozen:
            self._keep_frozen({"loss": digest(pending.losses)})


def inspector_for(
    step: Step, out_dir: Path | None, background: Background, policy: SnapshotPolicy | None = None
) -> Inspector:
    """The inspector for the device that the trainables are on."""
    on_gpu = any(parameter.is_cuda for parameter in step.trainables.values())
    # Without copies a failing update must be stopped before it, and that needs its numbers at once.
    late = on_gpu and not (policy and policy.light)
    return (DeferredInspector if late else Inspector)(step, out_dir, background, policy, ranks_of_this_run())
