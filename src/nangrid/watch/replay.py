"""Does the failing step fail again, and through which operation did the first non-finite number come?

The step is run from its snapshot on the live model under the tracer, and everything it touched is put back, so
that a run under way goes on as if nothing had been replayed.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path

from nangrid.watch.clocks import gradients
from nangrid.watch.origin import Origin, find_origin
from nangrid.watch.places import Places, keep_places
from nangrid.watch.snapshot import (
    MicroBatch,
    Snapshot,
    copy_state,
    param_groups,
    random_states,
    restore,
    set_random_states,
)
from nangrid.watch.trace import Tracer, is_finite

FROZEN = "frozen"
"""Not a clock: an infinite norm over finite gradients, which clipping turns into zero updates."""


class Step(Protocol):
    """How one training loop runs the parts of an optimizer step."""

    model: nn.Module
    trainables: dict[str, nn.Parameter]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that holds the state, unwrapped."""

    def forward_backward(self, micro_batch: MicroBatch) -> Tensor:
        """Accumulate the gradients of one micro-batch; its loss."""

    def clip(self) -> Tensor:
        """Unscale and clip the gradients; their norm before that."""

    def update(self) -> None:
        """Take the optimizer step."""


@dataclass
class Replay:
    """What a step did when it was run again."""

    clock: str | None
    """The first clock to ring, `frozen`, or None if the step stayed finite."""
    outcome: dict[str, str]
    """The bits of the step, to be compared with another run of it."""
    parameters: list[str] = field(default_factory=list)
    """Trainables whose gradient (before clipping), value or state is non-finite."""
    micro_batch: int = 0
    origin: Origin | None = None


def replay(step: Step, snapshot: Snapshot, *, untrained: bool = False) -> Replay:
    """Run the snapshot's step under the tracer.

    `untrained`: its micro-batches through the trainables as they were before the run's first step, with an
    empty optimizer, and without looking for an origin.
    """
    state, values = ({}, snapshot.initial) if untrained else (snapshot.state, snapshot.parameters)
    trace = not untrained
    # What was compiled is run eagerly: fused kernels hide their operations.
    with _undisturbed(step), torch.compiler.set_stance("force_eager"):
        restore(step.trainables, step.optimizer, values, state, snapshot.groups)
        for name, buffer in step.model.named_buffers():
            buffer.copy_(snapshot.buffers[name])
        step.model.train(snapshot.training)
        with keep_places(step.model) if trace else nullcontext(Places(step.model)) as places:
            tracer = Tracer(places)
            if trace:
                tracer.register(_leaves(step, snapshot))
            set_random_states(snapshot.rng)
            with _in_every_thread(tracer) if trace else nullcontext():
                found, ends = _run(step, snapshot, tracer)
        if trace:
            found.origin = find_origin(tracer.writes, [w for t in ends if (w := tracer.writer(t)) is not None])
    return found


@contextmanager
def _in_every_thread(tracer: Tracer) -> Iterator[None]:
    """Enter the tracer here, and in any thread that runs a backward pass meanwhile: modes are a thread's own."""
    original, here = torch.autograd.backward, threading.get_ident()

    def backward(*args: Any, **kwargs: Any) -> None:
        with nullcontext() if threading.get_ident() == here else tracer:
            original(*args, **kwargs)

    torch.autograd.backward = backward
    try:
        with tracer:
            yield
    finally:
        torch.autograd.backward = original


def _run(step: Step, snapshot: Snapshot, tracer: Tracer) -> tuple[Replay, list[Tensor]]:
    """The step up to its first clock, and the tensors that rang it."""
    losses: list[Tensor] = []
    for number, micro_batch in enumerate(snapshot.micro_batches):
        tracer.micro_batch = number
        losses.append(step.forward_backward(micro_batch).detach())
    outcome = {"loss": digest(losses), "gradients": digest(gradients(step.trainables).values())}
    bad_losses = [i for i, loss in enumerate(losses) if not is_finite(loss)]
    bad = _nonfinite(gradients(step.trainables))
    if bad_losses:
        return Replay("loss", outcome, list(bad), bad_losses[0]), [losses[bad_losses[0]]]
    if bad:
        return Replay("gradient", outcome, list(bad)), list(bad.values())
    norm = step.clip()
    if not torch.isfinite(norm):
        return Replay(FROZEN, outcome), [norm]
    tracer.phase = "optimizer"
    step.update()
    outcome["parameters"] = digest(step.trainables.values())
    return _after_update(step, outcome)


def _after_update(step: Step, outcome: dict[str, str]) -> tuple[Replay, list[Tensor]]:
    bad: dict[str, Tensor] = _nonfinite(step.trainables)
    if bad:
        return Replay("parameter", outcome, list(bad)), list(bad.values())
    state = {f"{key} of {name}": value for name, key, value in named_state(step)}
    bad = _nonfinite(state)
    return Replay("optimizer_state" if bad else None, outcome, list(bad)), list(bad.values())


def named_state(step: Step) -> Iterator[tuple[str, str, Tensor]]:
    """Floating-point optimizer state: trainable, key, tensor."""
    for name, parameter in step.trainables.items():
        for key, value in step.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                yield name, key, value


def digest(tensors: Any) -> str:
    """sha256 over the bits of some tensors."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()


def _nonfinite(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: t for name, t in tensors.items() if t.numel() and not is_finite(t)}


def _leaves(step: Step, snapshot: Snapshot) -> Iterator[tuple[str, Tensor]]:
    yield from ((f"parameter {name}", p) for name, p in step.model.named_parameters())
    yield from ((f"buffer {name}", b) for name, b in step.model.named_buffers())
    yield from ((f"{key} of {name}", value) for name, key, value in named_state(step))
    for number, micro_batch in enumerate(snapshot.micro_batches):
        for path, value in tree_flatten_with_path(micro_batch.inputs)[0]:
            if isinstance(value, Tensor):
                yield f"batch{''.join(map(str, path))} of micro-batch {number}", value


@contextmanager
def _undisturbed(step: Step) -> Iterator[None]:
    """Put back parameters, gradients, optimizer, random states and modes at the end of the block."""
    parameters = {name: p.detach().clone() for name, p in step.trainables.items()}
    kept = {name: p.grad for name, p in step.trainables.items()}
    state = {name: copy_state(step.optimizer.state.get(p, {})) for name, p in step.trainables.items()}
    groups = param_groups(step.optimizer)
    buffers = {name: b.detach().clone() for name, b in step.model.named_buffers()}
    rng, training = random_states(), step.model.training
    for parameter in step.trainables.values():
        parameter.grad = None
    try:
        yield
    finally:
        restore(step.trainables, step.optimizer, parameters, {n: s for n, s in state.items() if s}, groups)
        for name, parameter in step.trainables.items():
            parameter.grad = kept[name]
        for name, buffer in step.model.named_buffers():
            buffer.copy_(buffers[name])
        step.model.train(training)
        set_random_states(rng)
