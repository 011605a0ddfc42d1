"""A step whose numbers are still on the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nangrid.watch.state.recorder import Recorder
from nangrid.watch.state.tensors import gathering_device


@dataclass
class Update:
    """What one optimizer of a step reads and leaves: losses, and sizes by name."""

    losses: list[Tensor] = field(default_factory=list)
    measures: dict[str, Tensor] = field(default_factory=dict)
    complete: bool = False
    """Whether the optimizer has run."""

    def measure(self, name: str, size: Tensor) -> None:
        """Note a size; the largest of several counts."""
        known = self.measures.get(name)
        self.measures[name] = size if known is None else torch.maximum(known, size.to(known.device))


@dataclass
class Numbers:
    """The same on the host."""

    losses: list[float]
    measures: dict[str, float]


@dataclass
class PendingStep:
    """A step whose numbers have not been read yet."""

    step: int
    recorder: Recorder
    updates: list[Update] = field(default_factory=lambda: [Update()])
    """In the order of the optimizers' steps."""
    lr: float = 0.0
    seconds: float = 0.0
    numbers: Tensor | None = None
    event: Any = None

    @property
    def update(self) -> Update:
        """The update under way."""
        if self.updates[-1].complete:
            self.updates.append(Update())
        return self.updates[-1]

    def send(self) -> None:
        """Queue the copy of the numbers to the host, behind the step's kernels."""
        values = [value.detach() for u in self.updates for value in (*u.losses, *u.measures.values())]
        # Parameters may be spread over devices; one stack and one copy need them on one.
        device = gathering_device(values)
        numbers = torch.stack([value.to(device, non_blocking=True).double() for value in values])
        # Only a copy to pinned memory is asynchronous; the event tells when it has arrived.
        if numbers.is_cuda:
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(
                numbers, non_blocking=True
            )
            self.event = torch.cuda.Event()
            self.event.record()
        else:
            self.numbers = numbers

    def receive(self) -> list[Numbers]:
        """The numbers of each update; waits until they have arrived."""
        assert self.numbers is not None
        if self.event is not None:
            self.event.synchronize()
        arrived = iter(self.numbers.tolist())
        return [
            Numbers([next(arrived) for _ in u.losses], {n: next(arrived) for n in u.measures}) for u in self.updates
        ]
