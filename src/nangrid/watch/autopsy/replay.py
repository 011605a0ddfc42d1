"""Does the failing step fail again, and through which operation did the first non-finite number come?

The step is run from its snapshot on the live model under the tracer, and everything it touched is put back, so
that a run under way goes on as if nothing had been replayed.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten_with_path

from nangrid.watch.autopsy.ablate import Ablation
from nangrid.watch.autopsy.introduced import is_finite
from nangrid.watch.autopsy.origin import Origin, find_origin, is_intentional
from nangrid.watch.autopsy.places import Places, keep_places
from nangrid.watch.autopsy.trace import Tracer
from nangrid.watch.state.module_state import put, undisturbed
from nangrid.watch.state.random_state import random_states, set_random_states
from nangrid.watch.state.recorder import shallow
from nangrid.watch.state.snapshot import MicroBatch, Snapshot, restore
from nangrid.watch.state.tensors import copy_state, gradients, param_groups

EVALUATION = "eval_loss"
FROZEN = "frozen"
"""Not a clock: an infinite norm over finite gradients, which clipping turns into zero updates."""
RAISED = "raised"
"""Not a clock either: the step was left by an exception, such as a user's own guard against NaN."""


class Step(Protocol):
    """How one training loop runs the parts of an optimizer step."""

    model: nn.Module
    trainables: dict[str, nn.Parameter]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that holds the state, unwrapped."""

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The GradScaler, if there is one."""

    def forward_backward(self, micro_batch: MicroBatch) -> Tensor:
        """Accumulate the gradients of one micro-batch; its loss. In an evaluation: its loss alone."""

    def clip(self) -> Tensor:
        """Clip the unscaled gradients; their norm before that."""

    def update(self) -> None:
        """Take the optimizer step."""


@dataclass
class Replay:
    """What a step did when it was run again."""

    clock: str | None
    """The first clock to ring, `frozen`, or None if the step stayed finite."""
    outcome: dict[str, str]
    """The bits of the step, to be compared with another run of it."""
    nonfinite: dict[str, Tensor] = field(default_factory=dict)
    """Trainables whose gradient (before clipping), value or state is non-finite: a mask of the elements."""
    micro_batch: int = 0
    loss: float = math.nan
    """Summed over the micro-batches, as scaled for accumulation."""
    norm: float = math.nan
    """Of the gradients before clipping; NaN if the step did not get there."""
    origin: Origin | None = None


def replay(
    step: Step, snapshot: Snapshot, *, untrained: bool = False, ablated: Collection[tuple[int, int]] = ()
) -> Replay:
    """Run the snapshot's step under the tracer.

    `untrained`: its micro-batches through the trainables as they were before the run's first step, with an
    empty optimizer, and without looking for an origin.
    `ablated`: with zeros in the place of what was born at these writes, and without looking for an origin.
    """
    state, values = ({}, snapshot.initial) if untrained else (snapshot.state, snapshot.parameters)
    trace = not untrained and not ablated
    # What was compiled is run eagerly: fused kernels hide their operations.
    around = snapshot.module_state
    with undisturbed(step.model, around.frozen), _undisturbed(step), torch.compiler.set_stance("force_eager"):
        restore(step.trainables, step.optimizer, values, state, snapshot.groups)
        put(step.model, around, snapshot.training)
        if step.scaler is not None:
            step.scaler.load_state_dict(snapshot.scaler)
        with keep_places(step.model) if trace else nullcontext(Places(step.model)) as places:
            tracer = Tracer(places)
            if trace:
                tracer.register(_leaves(step, snapshot))
            set_random_states(snapshot.rng)
            mode = tracer if trace else Ablation(ablated) if ablated else None
            with _in_every_thread(mode) if mode else nullcontext():
                try:
                    found, tensors = _run(step, snapshot, tracer)
                except Exception:
                    if snapshot.clock != RAISED:
                        raise
                    found, tensors = Replay(RAISED, {}), []
        ends = [write for tensor in tensors if (write := tracer.writer(tensor)) is not None]
    if trace and found.clock == RAISED:
        ends = _before_raising(step, snapshot, tracer)
    if trace:
        found.origin = find_origin(
            tracer.writes, ends, lambda producers: _rings(step, snapshot, found.clock, producers)
        )
    return found


def _before_raising(step: Step, snapshot: Snapshot, tracer: Tracer) -> list[int]:
    """The last NaN, or else infinity, that was written; none if the step raises without any of them, too."""
    producers = {write.at for write in tracer.writes if write.producer}
    if producers and _rings(step, snapshot, RAISED, producers):
        return []
    nans = [number for number, write in enumerate(tracer.writes) if write.nan]
    infinities = [number for number, write in enumerate(tracer.writes) if not is_intentional(write)]
    return nans[-1:] or infinities[-1:]


def _rings(step: Step, snapshot: Snapshot, clock: str | None, ablated: Collection[tuple[int, int]]) -> bool:
    try:
        return replay(step, snapshot, ablated=ablated).clock == clock
    except Exception:  # a loop may refuse the numbers it never had: nothing is learned of its origin
        return True


@contextmanager
def _in_every_thread(tracer: TorchDispatchMode) -> Iterator[None]:
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
        given = replace(micro_batch, inputs=shallow(micro_batch.inputs))
        losses.append(step.forward_backward(given).detach())
    bad_losses = [i for i, loss in enumerate(losses) if not is_finite(loss)]
    if snapshot.clock == EVALUATION:
        clock = EVALUATION if bad_losses else None
        return Replay(clock, {"loss": digest(losses)}), [losses[i] for i in bad_losses[:1]]
    tracer.phase = "backward"
    _unscale(step)
    outcome = {"loss": digest(losses), "gradients": digest(gradients(step.trainables).values())}
    bad = _nonfinite(gradients(step.trainables))
    if bad_losses:
        return Replay("loss", outcome, _masks(bad), bad_losses[0]), [losses[bad_losses[0]]]
    if bad:
        return Replay("gradient", outcome, _masks(bad)), list(bad.values())
    norm = step.clip()
    loss = float(sum(losses))
    if not torch.isfinite(norm):
        return Replay(FROZEN, outcome, loss=loss, norm=float(norm)), [norm]
    tracer.phase = "optimizer"
    step.update()
    outcome["parameters"] = digest(step.trainables.values())
    clock, bad = _after_update(step)
    return Replay(clock, outcome, _masks(bad), loss=loss, norm=float(norm)), list(bad.values())


def _unscale(step: Step) -> None:
    """As the live step did. A trainer's clipping unscales once more, which is then by 1."""
    if step.scaler is not None:
        step.scaler.unscale_(step.optimizer)
        step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": 1.0})
        _forget_unscaled(step.scaler)


def _forget_unscaled(scaler: torch.amp.GradScaler) -> None:
    # A GradScaler refuses to unscale twice between two updates, and the live step has unscaled already.
    scaler._per_optimizer_states.clear()


def _after_update(step: Step) -> tuple[str | None, dict[str, Tensor]]:
    if bad := _nonfinite(step.trainables):
        return "parameter", bad
    bad = _nonfinite({f"{key} of {name}": value for name, key, value in named_state(step)})
    return "optimizer_state" if bad else None, bad


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


def _masks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: ~torch.isfinite(t.detach()) for name, t in tensors.items()}


def _leaves(step: Step, snapshot: Snapshot) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in step.model.named_parameters():
        yield f"parameter {name}", parameter
        yield from _of_quantisation(f"parameter {name}", getattr(parameter, "quant_state", None))
    yield from ((f"buffer {name}", b) for name, b in step.model.named_buffers())
    yield from ((f"{key} of {name}", value) for name, key, value in named_state(step))
    yield from batch_tensors(snapshot)


def batch_tensors(snapshot: Snapshot) -> Iterator[tuple[str, Tensor]]:
    """Those of the micro-batches, by the names that autopsies give them."""
    for number, micro_batch in enumerate(snapshot.micro_batches):
        for path, value in tree_flatten_with_path(micro_batch.inputs)[0]:
            if isinstance(value, Tensor):
                yield f"batch{''.join(map(str, path))} of micro-batch {number}", value


def _of_quantisation(name: str, state: Any) -> Iterator[tuple[str, Tensor]]:
    """The scales of a bitsandbytes weight, which hide what was not finite when it was quantised."""
    for key, value in vars(state).items() if state is not None else ():
        if isinstance(value, Tensor):
            yield f"{name} (its quantisation's {key})", value
    nested = getattr(state, "state2", None)
    if nested is not None:
        yield from _of_quantisation(name, nested)


@contextmanager
def _undisturbed(step: Step) -> Iterator[None]:
    """Put back parameters, gradients, optimizer and random states at the end of the block."""
    parameters = {name: p.detach().clone() for name, p in step.trainables.items()}
    kept = {name: p.grad for name, p in step.trainables.items()}
    state = {name: copy_state(step.optimizer.state.get(p, {})) for name, p in step.trainables.items()}
    groups = param_groups(step.optimizer)
    rng = random_states()
    scaled = step.scaler.state_dict() if step.scaler else {}
    unscaled = dict(step.scaler._per_optimizer_states) if step.scaler else {}
    for parameter in step.trainables.values():
        parameter.grad = None
    try:
        if step.scaler is not None:
            _forget_unscaled(step.scaler)
        yield
    finally:
        if step.scaler is not None:
            step.scaler.load_state_dict(scaled)
            _forget_unscaled(step.scaler)
            step.scaler._per_optimizer_states.update(unscaled)
        restore(step.trainables, step.optimizer, parameters, {n: s for n, s in state.items() if s}, groups)
        for name, parameter in step.trainables.items():
            parameter.grad = kept[name]
        set_random_states(rng)
