"""How does a bare training loop learn where its first non-finite number arose?"""

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

from nangrid.records.autopsy import AUTOPSY, Autopsy
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
    """A step went non-finite. `autopsy` says where and how; the snapshot lies in the watch's `out_dir`."""

    def __init__(self, autopsy: Autopsy | None, message: str) -> None:
        super().__init__(message)
        self.autopsy = autopsy


class WatchObserver:
    """Where a Watch keeps its records, and who is told of its steps: nobody, unless a cell runs the loop."""

    def __init__(self, out_dir: Path) -> None:
        self.out_dir = out_dir

    def on_watch_created(self, watch: Watch) -> None:
        """A watch was made; its model and optimizer are ready."""

    def begin(self, step: int) -> None:
        """A step is about to begin."""

    def backward_done(self, step: int) -> None:
        """All its micro-batches went backward."""

    def complete(self, readings: Sequence[StepReading]) -> None:
        """These steps are complete."""


_hosts: list[WatchObserver] = []


@contextmanager
def observing_watches(host: WatchObserver) -> Iterator[None]:
    """Inside, `host` is told of every Watch that is made."""
    _hosts.append(host)
    try:
        yield
    finally:
        _hosts.remove(host)


class Watch:
    """Takes the optimizer steps of a training loop and stops it at the first non-finite value.

        watch = Watch(model, optimizer, out_dir="autopsy", max_grad_norm=1.0)
        for batch in batches:
            loss = watch.step(closure, batch)      # closure(batch): forward, backward, return the loss
        watch.close()

    `accumulate`: micro-batches an optimizer step; every call of `step` is one. `scheduler` is stepped after the
    optimizer; with a `scaler` the closure scales its loss itself, as usual. `texts` maps token ids to text for
    the report. `keep_every`: steps between two snapshots kept in `out_dir/kept` while all is finite (the last two
    stay), 0 for none: what a failure grew out of can be started from there.
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
        self.scheduler = scheduler
        self.scaler = scaler
        self.accumulate = accumulate
        self.background = Background(texts=texts or {})
        self._host = _hosts[-1] if _hosts else WatchObserver(Path(out_dir))
        self._loop = _Loop(model, optimizer, scaler, max_grad_norm)
        self.inspector = inspector_for(self._loop, self._host.out_dir, self.background, SnapshotPolicy(keep_every))
        self.started_at = 0.0
        """time.perf_counter() at the beginning of the first step."""
        self._calls = 0
        self._began = 0.0
        self._host.on_watch_created(self)

    def step(self, closure: Callable[..., Tensor], batch: Any = _NO_BATCH) -> Tensor:
        """Run `closure` on a micro-batch and, once a window is full, check, clip, step and check again.

        `closure` may also be of torch's own kind: no argument, zeroing gradients itself. Raises NonFiniteError
        at the first non-finite loss, gradient, parameter or optimizer state: the first two before the
        optimizer step, so that the parameters are still clean. On a GPU, which is never waited for, it is raised
        up to two steps later, with the autopsy of the very step. An exception of the closure's own, such as a guard
        against NaN, is passed on, with a note on it if a number was non-finite by then.
        """
        self._loop.closure = closure
        if self._calls % self.accumulate == 0:
            self._host.begin(self._calls // self.accumulate)
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
        self.inspector.loss(loss)
        if self._calls % self.accumulate == 0:
            self._finish()
        return loss

    def _finish(self) -> None:
        loop, inspector = self._loop, self.inspector
        self._host.backward_done(self._calls // self.accumulate - 1)
        if self.scaler is not None:
            self.scaler.unscale_(loop.optimizer)
        inspector.gradients(ignore_nonfinite=still_searching(self.scaler))
        self._stop_if_rung()
        inspector.norm(loop.clip())
        if self.scaler is None:
            loop.optimizer.step()
        else:
            self.scaler.step(loop.optimizer)
            self.scaler.update()
        lr = loop.optimizer.param_groups[0]["lr"]
        if self.scheduler is not None:
            self.scheduler.step()
        inspector.updated()
        self._host.complete(inspector.close(float(lr), time.perf_counter() - self._began))
        self._stop_if_rung()

    def close(self) -> None:
        """Look at the last steps, too, where they ran on a GPU; NonFiniteError as from `step`."""
        self.inspector.finish()
        self._stop_if_rung()
        if self.inspector.frozen is not None:
            warnings.warn(f"a step was frozen\n{explain(self.inspector.frozen)}", stacklevel=2)

    def _stop_if_rung(self) -> None:
        onset = self.inspector.clocks.onset
        if onset is not None:
            autopsy, folder = self.inspector.autopsy, self.inspector.out_dir
            told = f"{explain(autopsy)}\n{folder}/{AUTOPSY}" if autopsy else self.inspector.unexplained
            message = f"{onset.clock} went non-finite at step {onset.step}\n{told}"
            raise NonFiniteError(autopsy, message)


def _refuse(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError("LBFGS runs its closure several times a step, which Watch cannot follow: take another one.")
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise InputError("ReduceLROnPlateau takes a metric: step it yourself after watch.step, and give no scheduler=.")
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise InputError("The model has lazy parameters: run it once on a batch before the Watch is made.")


class _Loop:
    """The parts of a bare loop's step."""

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
        """The loop's own."""
        return self._optimizer

    def forward_backward(self, micro_batch: MicroBatch) -> Tensor:
        """Call the closure, with the micro-batch if one was given."""
        return self.closure(micro_batch.inputs) if micro_batch.extra["given"] else self.closure()

    def clip(self) -> Tensor:
        """Clip the unscaled gradients."""
        if self.max_grad_norm is None:
            return torch.zeros(())
        return nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)

    def update(self) -> None:
        """Take the optimizer step."""
        self.optimizer.step()
