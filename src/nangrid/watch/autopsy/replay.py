"""Runs a failing step again from its snapshot: traced, from the untrained weights, or with some writes ablated.

The step runs on the live model, and everything it touches is restored afterwards. A run in progress therefore
continues as if nothing had been replayed.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_flatten_with_path

from nangrid.watch.autopsy.ablate import Ablation, Writes
from nangrid.watch.autopsy.collectives import without_collectives
from nangrid.watch.autopsy.origin import Origin, find_origin, is_intentional
from nangrid.watch.autopsy.places import keep_places
from nangrid.watch.autopsy.trace import Progress, Tracer
from nangrid.watch.state.module_state import load_module_state, preserving, preserving_gradients
from nangrid.watch.state.random_state import random_states, set_random_states
from nangrid.watch.state.recorder import shallow
from nangrid.watch.state.snapshot import MicroBatch, Snapshot, State, restore
from nangrid.watch.state.tensors import copy_state, gradients, is_finite, local, param_groups, wide

EVALUATION = "eval_loss"
EAGER = "force_eager"
"""The stance of torch.compile under which compiled models run eagerly."""
FROZEN = "frozen"
"""Not a clock: the gradients are finite but their norm is inf, so that clipping makes every update zero."""
RAISED = "raised"
"""Not a clock: an exception left the step, such as a guard against NaN in the training loop."""


AFTER_UPDATE = ("parameter", "optimizer_state")
"""The clocks that trip after the optimizer has run."""


class NotRepeatableError(Exception):
    """A step cannot be run again; the message is one sentence that says why."""


class Step(Protocol):
    """How one training loop runs the parts of an optimizer step."""

    model: nn.Module
    trainables: dict[str, nn.Parameter]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The torch optimizer that holds the state, without wrappers."""

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The GradScaler, or None."""

    def forward_backward(self, micro_batch: MicroBatch) -> Tensor:
        """Accumulate the gradients of one micro-batch and return its loss; in an evaluation, only compute the loss."""

    def clip(self) -> Tensor:
        """Clip the unscaled gradients and return their norm from before."""

    def update(self) -> None:
        """Take the optimizer step."""


class WholeStep(ABC):
    """A step that runs forward, backward, clipping and optimizers at once, up to where it fails."""

    progress: Progress
    """How far the replay under way is; this step moves it on."""

    @property
    @abstractmethod
    def updated(self) -> Mapping[str, nn.Parameter]:
        """The trainables that the optimizer under way updates."""

    @abstractmethod
    def repeating(self, snapshot: Snapshot) -> AbstractContextManager[None]:
        """Put what the loop changes besides model and optimizer back within the block."""


def updated(step: Step) -> Mapping[str, nn.Parameter]:
    """The trainables that the optimizer under way updates."""
    return step.updated if isinstance(step, WholeStep) else step.trainables


def repeating(step: Step, snapshot: Snapshot) -> AbstractContextManager[None]:
    """Put what the loop changes besides model and optimizer back within the block."""
    return step.repeating(snapshot) if isinstance(step, WholeStep) else nullcontext()


@dataclass
class Replay:
    """The result of running a step again."""

    clock: str | None
    """The first clock to trip, `frozen`, `raised`, or None if the step stayed finite."""
    outcome: dict[str, str]
    """sha256 of the step's losses, gradients and parameters, to compare with another run of it."""
    nonfinite: dict[str, Tensor] = field(default_factory=dict)
    """Masks of the non-finite elements of gradients (before clipping), trainables or optimizer state, by name."""
    micro_batch: int = 0
    loss: float = math.nan
    """Sum over the micro-batches, each as scaled for accumulation."""
    norm: float = math.nan
    """Of the gradients before clipping; NaN if the step did not get that far."""
    origin: Origin | None = None


def replay(step: Step, snapshot: Snapshot, ablated: Writes = ()) -> Replay:
    """Run the snapshot's step under the tracer and find the origin of its first non-finite number.

    `ablated`: writes in place of whose non-finite numbers there are zeros.
    """
    with _replaying(step, snapshot, snapshot.parameters, snapshot.state), keep_places(step.model) as places:
        tracer = Tracer(places, ablated)
        tracer.register(_named_tensors(step, snapshot))
        replayed, tripping = _run_under(tracer, step, snapshot, tracer.progress)
        ends = [write for tensor in tripping if (write := tracer.writer(tensor)) is not None]
    if replayed.clock == RAISED:
        ends = _last_before_raising(step, snapshot, tracer)
    replayed.origin = find_origin(
        tracer.writes, ends, lambda writes: _still_trips_without({*writes, *ablated}, step, snapshot, replayed.clock)
    )
    return replayed


def replay_untrained(step: Step, snapshot: Snapshot) -> Replay:
    """Run the step's micro-batches through the run's initial trainables, with an empty optimizer and no origin."""
    with _replaying(step, snapshot, snapshot.initial, {}):
        return _run_under(None, step, snapshot, Progress())[0]


def rerun(
    step: Step, snapshot: Snapshot, mode: AbstractContextManager[Any] | None = None, stance: str = EAGER
) -> Replay:
    """Run the step once more, under a mode of torch if one is given, without looking for an origin.

    `stance`: what torch.compile does meanwhile; `default` runs compiled models as they are.
    """
    with _replaying(step, snapshot, snapshot.parameters, snapshot.state, stance):
        return _run_under(mode, step, snapshot, Progress())[0]


def fails(step: Step, snapshot: Snapshot) -> bool:
    """Whether the snapshot's step trips a clock before its update."""
    return rerun(step, snapshot).clock in ("loss", "gradient")


def _still_trips_without(writes: Writes, step: Step, snapshot: Snapshot, clock: str | None) -> bool:
    try:
        return rerun(step, snapshot, Ablation(writes)).clock == clock
    except Exception:  # the loop may reject numbers that it never had: this says nothing about the origin
        return True


def _last_before_raising(step: Step, snapshot: Snapshot, tracer: Tracer) -> list[int]:
    """The last NaN written, or else the last infinity; empty if the step raises without any of them, too."""
    producers = {write.at for write in tracer.writes if write.producer}
    if producers and _still_trips_without(producers, step, snapshot, RAISED):
        return []
    nans = [number for number, write in enumerate(tracer.writes) if write.nan]
    infinities = [number for number, write in enumerate(tracer.writes) if not is_intentional(write)]
    return nans[-1:] or infinities[-1:]


@contextmanager
def _replaying(
    step: Step, snapshot: Snapshot, parameters: Mapping[str, Tensor], state: State, stance: str = EAGER
) -> Iterator[None]:
    """Put the step into the snapshot's state with these parameters and this optimizer state; restore all at the end."""
    module_state = snapshot.module_state
    with (
        preserving(step.model, module_state.frozen),
        _preserving_step(step),
        without_collectives(),
        # Compiled models are run eagerly, because fused kernels hide their operations from the tracer.
        torch.compiler.set_stance(stance),
    ):
        restore(step.trainables, step.optimizer, parameters, state, snapshot.groups)
        for name, gradient in snapshot.gradients.items():
            step.trainables[name].grad = gradient.to(step.trainables[name].device, copy=True)
        load_module_state(step.model, module_state, snapshot.training)
        if step.scaler is not None:
            step.scaler.load_state_dict(snapshot.scaler)
        set_random_states(snapshot.rng)
        with repeating(step, snapshot):
            yield


def _run_under(
    mode: AbstractContextManager[Any] | None, step: Step, snapshot: Snapshot, progress: Progress
) -> tuple[Replay, list[Tensor]]:
    """Run the step under a dispatch mode; a step that was left by an exception may raise again."""
    with _in_every_thread(mode) if mode else nullcontext():
        try:
            return _run(step, snapshot, progress)
        except Exception:
            if snapshot.clock != RAISED:
                raise
            return Replay(RAISED, {}), []


@contextmanager
def _in_every_thread(mode: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter a mode here, and one of torch also in every backward pass that is run without it."""
    # Modes of torch are thread-local, and a training loop may call backward in a thread of its own. One for functions
    # is left while it handles `Tensor.backward`, within which a checkpointed region calls functions again.
    original = vars(torch.autograd)["_engine_run_backward"]
    of_torch = isinstance(mode, TorchDispatchMode | TorchFunctionMode)

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        active = (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack())
        with mode if of_torch and mode not in active else nullcontext():
            return original(*args, **kwargs)

    with mock.patch.object(torch.autograd, "_engine_run_backward", run_backward), mode:
        yield


def _run(step: Step, snapshot: Snapshot, progress: Progress) -> tuple[Replay, list[Tensor]]:
    """Run the step up to the first clock that trips; the result, and the tensors that tripped it."""
    losses: list[Tensor] = []
    if isinstance(step, WholeStep):
        step.progress = progress
    for number, micro_batch in enumerate(snapshot.micro_batches):
        progress.micro_batch = number
        losses.append(step.forward_backward(replace(micro_batch, inputs=shallow(micro_batch.inputs))).detach())
    # The order of the checks is that of the clocks within a step: loss, gradient, parameter, optimizer state.
    bad_losses = [i for i, loss in enumerate(losses) if not is_finite(loss)]
    if snapshot.clock == EVALUATION:
        clock = EVALUATION if bad_losses else None
        return Replay(clock, {"loss": digest(losses)}), [losses[i] for i in bad_losses[:1]]
    progress.phase = "backward"
    _unscale(step)
    found = gradients(updated(step))
    outcome = {"loss": digest(losses), "gradients": digest(found.values())}
    bad = nonfinite(found)
    if bad_losses:
        return Replay("loss", outcome, _masks(bad), bad_losses[0]), [losses[bad_losses[0]]]
    if bad:
        return Replay("gradient", outcome, _masks(bad)), list(bad.values())
    norm = step.clip()
    loss = float(sum(loss.sum() for loss in losses))
    if not torch.isfinite(norm):
        return Replay(FROZEN, outcome, loss=loss, norm=float(norm)), [norm]
    progress.phase = "optimizer"
    step.update()
    outcome["parameters"] = digest(step.trainables.values())
    clock, bad = _after_update(step)
    return Replay(clock, outcome, _masks(bad), loss=loss, norm=float(norm)), list(bad.values())


def _unscale(step: Step) -> None:
    """Unscale the gradients as the live step did; a trainer's clipping unscales them once more, by a scale of 1."""
    if step.scaler is not None:
        step.scaler.unscale_(step.optimizer)
        step.scaler.load_state_dict(step.scaler.state_dict() | {"scale": 1.0})
        _forget_unscaled(step.scaler)


def _forget_unscaled(scaler: torch.amp.GradScaler) -> None:
    # A GradScaler refuses to unscale twice between two updates, and the live step has unscaled already.
    scaler._per_optimizer_states.clear()


def _after_update(step: Step) -> tuple[str | None, dict[str, Tensor]]:
    if bad := nonfinite(step.trainables):
        return "parameter", bad
    bad = nonfinite({f"{key} of {name}": value for name, key, value in named_state(step)})
    return "optimizer_state" if bad else None, bad


def named_state(step: Step) -> Iterator[tuple[str, str, Tensor]]:
    """Every floating-point tensor of the optimizer state: trainable, key, tensor."""
    for name, parameter in step.trainables.items():
        for key, value in step.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                yield name, key, value


def digest(tensors: Any) -> str:
    """sha256 over the bits of some tensors; every NaN counts as the same one."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        sha256.update(_one_nan(local(tensor).detach()).contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes())
    return sha256.hexdigest()


def _one_nan(tensor: Tensor) -> Tensor:
    # Sign and payload of a NaN differ between kernels that compute the same numbers: fused and eager ones.
    if not tensor.is_floating_point() or is_finite(tensor):
        return tensor
    return tensor.masked_fill(wide(tensor).isnan(), math.nan)


def nonfinite(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those of the tensors that are not finite."""
    return {name: t for name, t in tensors.items() if t.numel() and not is_finite(t)}


def _masks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: ~torch.isfinite(local(t).detach()) for name, t in tensors.items()}


def _named_tensors(step: Step, snapshot: Snapshot) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that exists before the step, with the name that autopsies give it."""
    for name, parameter in step.model.named_parameters():
        yield f"parameter {name}", parameter
        yield from _of_quantisation(f"parameter {name}", getattr(parameter, "quant_state", None))
    yield from ((f"buffer {name}", b) for name, b in step.model.named_buffers())
    yield from ((f"{key} of {name}", value) for name, key, value in named_state(step))
    for name, gradient in gradients(step.trainables).items():
        yield f"gradient of {name}", gradient
    yield from batch_tensors(snapshot)


def batch_tensors(snapshot: Snapshot) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the micro-batches, with the names that autopsies give them."""
    for number, micro_batch in enumerate(snapshot.micro_batches):
        for path, value in tree_flatten_with_path(micro_batch.inputs)[0]:
            if isinstance(value, Tensor):
                yield f"batch{''.join(map(str, path))} of micro-batch {number}", value


def _of_quantisation(name: str, state: Any) -> Iterator[tuple[str, Tensor]]:
    """The scales of a bitsandbytes weight: a weight that was non-finite when quantised shows only there."""
    for key, value in vars(state).items() if state is not None else ():
        if isinstance(value, Tensor):
            yield f"{name} (its quantisation's {key})", value
    nested = getattr(state, "state2", None)
    if nested is not None:
        yield from _of_quantisation(name, nested)


@contextmanager
def _preserving_step(step: Step) -> Iterator[None]:
    """Restore parameters, gradients, optimizer, scaler and random states at the end of the block."""
    parameters = {name: p.detach().clone() for name, p in step.trainables.items()}
    state = {name: copy_state(step.optimizer.state.get(p, {})) for name, p in step.trainables.items()}
    groups = param_groups(step.optimizer)
    rng = random_states()
    try:
        with preserving_gradients(step.trainables), _preserving_scaler(step.scaler):
            yield
    finally:
        restore(step.trainables, step.optimizer, parameters, {n: s for n, s in state.items() if s}, groups)
        set_random_states(rng)


@contextmanager
def _preserving_scaler(scaler: torch.amp.GradScaler | None) -> Iterator[None]:
    if scaler is None:
        yield
        return
    state, unscaled = scaler.state_dict(), dict(scaler._per_optimizer_states)
    _forget_unscaled(scaler)
    try:
        yield
    finally:
        scaler.load_state_dict(state)
        _forget_unscaled(scaler)
        scaler._per_optimizer_states.update(unscaled)
