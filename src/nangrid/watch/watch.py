"""Watches a hand-written training loop: the public class `Watch` and the error that it raises."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from nangrid.records.autopsy import Autopsy
from nangrid.records.errors import InputError
from nangrid.records.explain import explain
from nangrid.watch.autopsy.examine import Background
from nangrid.watch.clocks import StepReading
from nangrid.watch.deferred import inspector_for
from nangrid.watch.inspector import SnapshotPolicy, still_searching
from nangrid.watch.state.snapshot import MicroBatch
from nangrid.watch.state.tensors import trainables

_NO_BATCH = object()


class NonFiniteError(ArithmeticError):
    """A step went non-finite. `autopsy` says where and how; the snapshot is in the watch's `out_dir`.

    If nothing can be written there, the message says why, and `autopsy` is complete all the same.
    """

    def __init__(self, autopsy: Autopsy | None, message: str) -> None:
        super().__init__(message)
        self.autopsy = autopsy


class WatchObserver:
    """Receives the steps of a Watch and decides where its records go; the default does nothing.

    A cell that runs a user's script uses one, see nangrid.cell.script.
    """

    def __init__(self, out_dir: Path) -> None:
        self.out_dir = out_dir

    def on_watch_created(self, watch: Watch) -> None:
        """Called when a watch was created; its model and optimizer are ready."""

    def begin(self, step: int) -> None:
        """Called before a step."""

    def backward_done(self, step: int) -> None:
        """Called after the backward passes of all micro-batches of a step."""

    def complete(self, readings: Sequence[StepReading]) -> None:
        """Called with the readings of steps that are complete."""


# A list in the module, because the Watch is created inside the user's script, to which nothing can be passed.
_observers: list[WatchObserver] = []


@contextmanager
def observing_watches(observer: WatchObserver) -> Iterator[None]:
    """Within the block, every new Watch reports to `observer` and writes into its directory."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


class Watch:
    """Runs the optimizer steps of a training loop and stops it at the first non-finite value.

        watch = Watch(model, optimizer, out_dir="autopsy", max_grad_norm=1.0)
        for batch in batches:
            loss = watch.step(closure, batch)      # closure(batch): forward, backward, return the loss
        watch.close()

    `accumulate`: micro-batches per optimizer step; every call of `step` is one. `scheduler` is stepped after the
    optimizer. With a `scaler` the closure scales its loss itself, as usual. `texts` maps token ids to text for the
    report. `keep_every`: save a snapshot to `out_dir/kept` every so many steps while all is finite, and keep the last
    two, so that a run can be started shortly before a later failure; 0: none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        out_dir: str | Path = "autopsy",
        *,
        scheduler: Any = None,
        scaler: torch.amp.GradScaler | None = None,
        max_grad_norm: float | None = None,
        accumulate: int = 1,
        texts: Mapping[int, str] | None = None,
        keep_every: int = 0,
    ) -> None:
        _refuse(model, optimizer, scheduler)
        _refuse_numbers(accumulate=(accumulate, 1), keep_every=(keep_every, 0))
        self.scheduler = scheduler
        self.scaler = scaler
        self.accumulate = accumulate
        self.background = Background(texts=texts or {})
        self._observer = _observers[-1] if _observers else WatchObserver(Path(out_dir))
        self._loop = _Loop(model, optimizer, scaler, max_grad_norm)
        self.inspector = inspector_for(self._loop, self._observer.out_dir, self.background, SnapshotPolicy(keep_every))
        self.started_at = 0.0
        """time.perf_counter() at the start of the first step."""
        self._calls = 0
        self._began = 0.0
        self._observer.on_watch_created(self)

    def step(self, closure: Callable[..., Tensor], batch: Any = _NO_BATCH) -> Tensor:
        """Run `closure` on a micro-batch; after `accumulate` of them check, clip, update and check again.

        `closure(batch)` runs forward and backward and returns the loss. A closure in torch's convention, without
        argument and zeroing gradients itself, works too. Raises NonFiniteError at the first non-finite loss, gradient,
        parameter or optimizer state. For loss and gradient it is raised before the optimizer runs, with the parameters
        still clean. On a GPU it is raised up to two steps later, because the watch never waits for the device; the
        autopsy is of the step that failed. Exceptions of the closure, such as a guard against NaN, propagate, with a
        note if a number was already non-finite.
        """
        self._loop.closure = closure
        if self._calls % self.accumulate == 0:
            self._observer.begin(self._calls // self.accumulate)
            self._began = time.perf_counter()
            self.started_at = self.started_at or self._began
            self._loop.optimizer.zero_grad()
            self.inspector.begin(self._calls // self.accumulate)
        self._calls += 1
        micro_batch = MicroBatch(None if batch is _NO_BATCH else batch, {"given": batch is not _NO_BATCH})
        self.inspector.micro_batch(micro_batch.inputs, **micro_batch.extra)
        try:
            loss = self._loop.forward_backward(micro_batch)
        except Exception as error:
            self.inspector.raised(error)
            raise
        _check_loss(loss)
        self.inspector.loss(loss)
        if self._calls % self.accumulate == 0:
            self._finish()
        return loss

    def _finish(self) -> None:
        loop, inspector = self._loop, self.inspector
        self._observer.backward_done(self._calls // self.accumulate - 1)
        if self.scaler is not None:
            # Magnitudes are recorded, and clipped, without the scale.
            self.scaler.unscale_(loop.optimizer)
        inspector.gradients(ignore_nonfinite=still_searching(self.scaler))
        self._raise_on_onset()
        inspector.norm(loop.clip())
        if self.scaler is None:
            loop.optimizer.step()
        else:
            self.scaler.step(loop.optimizer)
            self.scaler.update()
        # Read before the scheduler moves it: this step used the old one.
        lr = loop.optimizer.param_groups[0]["lr"]
        if self.scheduler is not None:
            self.scheduler.step()
        inspector.updated()
        self._observer.complete(inspector.close(float(lr), time.perf_counter() - self._began))
        self._raise_on_onset()

    def close(self) -> None:
        """Check the last steps, which on a GPU may still be in flight; NonFiniteError as from `step`."""
        self.inspector.finish()
        self._raise_on_onset()
        if self.inspector.frozen is not None:
            warnings.warn(f"a step was frozen: its update was zero\n{explain(self.inspector.frozen)}", stacklevel=2)

    def _raise_on_onset(self) -> None:
        onset = self.inspector.clocks.onset
        if onset is not None:
            autopsy, place = self.inspector.autopsy, self.inspector.autopsy_place
            detail = f"{explain(autopsy)}\n{place}" if autopsy else self.inspector.unexplained
            raise NonFiniteError(autopsy, f"{onset.clock} went non-finite at step {onset.step}\n{detail}")


def _refuse(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError("LBFGS runs its closure several times per step, which Watch cannot follow: use another one.")
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise InputError("ReduceLROnPlateau needs a metric: step it yourself after watch.step, without scheduler=.")
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise InputError("The model has lazy parameters: run it on one batch before creating the Watch.")
    optimized = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(p.requires_grad for p in (*model.parameters(), *optimized)):
        raise InputError("No parameter of the model or the optimizer requires a gradient: nothing would be trained.")
    if any(p.is_meta for p in optimized):
        raise InputError("The model's parameters are on the meta device: load its weights before creating the Watch.")


def _refuse_numbers(**numbers: tuple[int, int]) -> None:
    for name, (value, lowest) in numbers.items():
        if not isinstance(value, int) or value < lowest:
            raise InputError(f"{name}={value} is out of range: give a whole number of at least {lowest}.")


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise InputError(f"The closure returned a {type(loss).__name__}: let it return the loss, a tensor.")
    if loss.numel() != 1:
        raise InputError(f"The closure returned a loss of shape {list(loss.shape)}: let it return one number.")


class _Loop:
    """The parts of a hand-written loop's step; implements nangrid.watch.autopsy.replay.Step."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
        max_grad_norm: float | None,
    ) -> None:
        self.model = model
        self._optimizer = optimizer
        self.scaler = scaler
        self.max_grad_norm = max_grad_norm
        self.trainables = trainables(model)
        self.closure: Callable[..., Tensor] = lambda: torch.zeros(())

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that was passed to the Watch."""
        return self._optimizer

    def forward_backward(self, micro_batch: MicroBatch) -> Tensor:
        """Call the closure, with the batch if one was passed to `step`."""
        return self.closure(micro_batch.inputs) if micro_batch.extra["given"] else self.closure()

    def clip(self) -> Tensor:
        """Clip the unscaled gradients; their norm from before, or 0 without clipping."""
        if self.max_grad_norm is None:
            return torch.zeros(())
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)

    def update(self) -> None:
        """Run the optimizer."""
        self.optimizer.step()
