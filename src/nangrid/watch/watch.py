"""Watches a hand-written training loop: the public class `Watch` and the error that it raises."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from nangrid.records.autopsy import Autopsy
from nangrid.records.errors import InputError
from nangrid.records.explain import explain
from nangrid.watch.autopsy.examine import Background
from nangrid.watch.batches import BatchLoop
from nangrid.watch.body_step import BodyStep
from nangrid.watch.clocks import StepReading
from nangrid.watch.deferred import inspector_for
from nangrid.watch.ranks.wrappers import bare, engine_among, refuse_join, refuse_parallelism
from nangrid.watch.ranks.zero import ZeroOptimizer, zero_of
from nangrid.watch.state.optimizers import together, unwrapped
from nangrid.watch.state.recorder import SnapshotPolicy
from nangrid.watch.state.scaler import scale_of
from nangrid.watch.state.snapshot import MicroBatch
from nangrid.watch.state.tensors import trainables

_NO_BATCH = object()
logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")
SNAPSHOTS = ("auto", "full", "light")
LIGHT_FROM = 64_000_000
"""Trainables from which on `auto` is light: copies of them and of their AdamW state would take 1 GB."""


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
    """Stops a training loop at the first non-finite value and explains where it arose.

        watch = Watch(model, optimizer, out_dir="autopsy")
        for batch in watch.batches(loader):
            ...                                    # the loop's body, as it was

    Or, if the loop's step is a closure (batch: forward, backward, return the loss):

            loss = watch.step(closure, batch)
        watch.close()

    `model` and `optimizer` may be one or several, also as Accelerate, DistributedDataParallel or fully_shard have
    prepared them. With several ranks each creates its Watch, and all raise the error together. `texts` maps token ids
    to text for the report. `keep_every`: save a snapshot to `out_dir/kept` every so many steps while all is finite, and
    keep the last two, so that a run can be started shortly before a later failure; 0: none. `snapshot`: "full" copies
    parameters and optimizer state before every step; "light" copies neither, and cannot replay a failing update;
    "auto" is light from 64 million trainables on.

    For `step` alone: `accumulate` is the number of micro-batches per optimizer step; every call of `step` is one.
    `scheduler` is stepped after the optimizer. With a `scaler` the closure scales its loss itself, as usual.
    `batches` finds the loop's scaler; pass it if it is an attribute of a library's object.
    """

    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        out_dir: str | Path = "autopsy",
        *,
        scheduler: Any = None,
        scaler: torch.amp.GradScaler | None = None,
        max_grad_norm: float | None = None,
        accumulate: int = 1,
        texts: Mapping[int, str] | None = None,
        keep_every: int = 0,
        snapshot: str = "auto",
    ) -> None:
        self._models = list(model) if isinstance(model, Sequence) else [model]
        self._given = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
        self._optimizers = [unwrapped(given) for given in self._given]
        refuse_parallelism(self._models, self._optimizers)
        engine = engine_among(self._models)
        if engine is not None:
            self._optimizers = [cast(torch.optim.Optimizer, ZeroOptimizer.of(engine))]
        model = bare(model) if isinstance(model, nn.Module) else nn.ModuleList(map(bare, model))
        _refuse(model, self._optimizers, scheduler)
        _refuse_numbers(accumulate=(accumulate, 1), keep_every=(keep_every, 0))
        self.scheduler = scheduler
        self.scaler = scaler
        self.accumulate = accumulate
        self.background = Background(texts=texts or {})
        self._observer = _observers[-1] if _observers else WatchObserver(Path(out_dir))
        self._loop = _Loop(model, together(self._optimizers), scaler, max_grad_norm)
        policy = SnapshotPolicy(keep_every, light=_is_light(snapshot, trainables(model), keep_every))
        self.inspector = inspector_for(self._loop, self._observer.out_dir, self.background, policy)
        self._batch_loop: BatchLoop | None = None
        self.started_at = 0.0
        """time.perf_counter() at the start of the first step."""
        self._calls = 0
        self._failed = False
        """Whether a closure raised, so that its gradients are incomplete."""
        self._began = 0.0
        self._observer.on_watch_created(self)

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of `loader`, for a loop whose body is any training code.

        A step ends with the iteration in which an optimizer steps. When a number went non-finite, the loop's body is
        run again from its source, several times, and NonFiniteError is raised: from the optimizer's `step`, before it
        updates if a loss or gradient is non-finite, right after it if a parameter or its state is. On a GPU it is
        raised up to two steps later, as from `step`. What the body does besides training, such as logging, it does
        again in a replay.
        """
        return self.follow().batches(loader)

    def follow(self) -> BatchLoop:
        """What follows the loop; one that runs in a framework tells it of its rounds, see nangrid.integrations."""
        if self._calls:
            raise InputError("This Watch has taken steps by watch.step: make another one for watch.batches.")
        for model in self._models:
            refuse_join(model)
        if self._batch_loop is None:
            step = BodyStep(self._loop.model, self._optimizers, self._loop.trainables)
            zero = zero_of(step)
            step.live_scaler = self.scaler if zero is None else cast(torch.amp.GradScaler, zero.scale)
            self.inspector.step = step
            self._batch_loop = BatchLoop(step, self.inspector, self._observer, self._raise_on_onset)
        self.started_at = self.started_at or time.perf_counter()
        return self._batch_loop

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
            self._open()
        self._calls += 1
        micro_batch = MicroBatch(None if batch is _NO_BATCH else batch, {"given": batch is not _NO_BATCH})
        self.inspector.micro_batch(micro_batch.inputs, **micro_batch.extra)
        try:
            loss = self._loop.forward_backward(micro_batch)
        except Exception as error:
            self._failed = True
            self.inspector.raised(error)
            raise
        _check_loss(loss)
        self.inspector.loss(loss)
        if self._calls % self.accumulate == 0:
            self._finish()
        return loss

    def _open(self) -> None:
        if self._calls == 0:
            _refuse_for_closures(self._given, self._batch_loop, engine_among(self._models))
        step = self._calls // self.accumulate
        self._observer.begin(step)
        self._began = time.perf_counter()
        self.started_at = self.started_at or self._began
        self._loop.optimizer.zero_grad()
        self.inspector.begin(step)

    def _finish(self) -> None:
        loop, inspector = self._loop, self.inspector
        self._observer.backward_done((self._calls - 1) // self.accumulate)
        if self.scaler is not None:
            # Magnitudes are recorded, and clipped, without the scale.
            self.scaler.unscale_(loop.optimizer)
        inspector.gradients(scale_of(self.scaler))
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
        """End the run; NonFiniteError as from `step`, because on a GPU the last steps may still be in flight.

        With `accumulate`, micro-batches that are left over make a last, smaller step.
        """
        if self._batch_loop is not None:
            self._batch_loop.close()
        elif self._calls % self.accumulate and not self._failed and self.inspector.clocks.onset is None:
            self._finish()
        self.inspector.finish()
        self._raise_on_onset()
        if self.inspector.frozen is not None:
            warnings.warn(f"a step was frozen: its update was zero\n{explain(self.inspector.frozen)}", stacklevel=2)

    def _raise_on_onset(self) -> None:
        onset = self.inspector.clocks.onset
        if onset is not None:
            autopsy, place = self.inspector.autopsy, self.inspector.autopsy_place
            explained = [explain(autopsy), place] if autopsy else []
            lines = [f"{onset.clock} went non-finite at step {onset.step}", self.inspector.unexplained, *explained]
            raise NonFiniteError(autopsy, "\n".join(filter(None, lines)))


def _refuse(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], scheduler: Any) -> None:
    if not optimizers:
        raise InputError("The list of optimizers is empty: pass those that the loop steps.")
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise InputError("LBFGS runs its closure several times per step, which Watch cannot follow: use another one.")
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        raise InputError("ReduceLROnPlateau needs a metric: step it yourself after watch.step, without scheduler=.")
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise InputError("The model has lazy parameters: run it on one batch before creating the Watch.")
    optimized = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
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


def _refuse_for_closures(
    optimizers: Sequence[torch.optim.Optimizer], batch_loop: BatchLoop | None, engine: Any
) -> None:
    if batch_loop is not None:
        raise InputError("This Watch follows a loop by watch.batches: make another one for watch.step.")
    if engine is not None:
        raise InputError("The engine of DeepSpeed steps by itself: use `for batch in watch.batches(loader)`.")
    if len(optimizers) > 1:
        raise InputError("watch.step takes one optimizer: use `for batch in watch.batches(loader)` with several.")
    gradient_state = getattr(optimizers[0], "gradient_state", None)
    if gradient_state is not None and gradient_state.num_steps > 1:
        raise InputError(
            "Accelerate's optimizer decides itself when to zero and to step, which watch.step would change: use "
            "`for batch in watch.batches(loader)` with gradient_accumulation_steps > 1."
        )


def _is_light(snapshot: str, trainables: Mapping[str, nn.Parameter], keep_every: int) -> bool:
    if snapshot not in SNAPSHOTS:
        raise InputError(f"snapshot={snapshot!r} is unknown: pass one of {', '.join(SNAPSHOTS)}.")
    if snapshot == "light" and keep_every:
        raise InputError("keep_every saves copies, and snapshot='light' keeps none: pass snapshot='full'.")
    count = sum(parameter.numel() for parameter in trainables.values())
    if snapshot != "auto" or keep_every or count < LIGHT_FROM:
        return snapshot == "light"
    logger.warning(
        "snapshot=light, because %d million trainables are to be watched: a failure in the optimizer's update will not "
        "be replayed. snapshot='full' would copy them and their optimizer state.",
        count // 1_000_000,
    )
    return True


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
        # DeepSpeed trains fragments of the model's parameters.
        self.trainables = optimizer.trainables if isinstance(optimizer, ZeroOptimizer) else trainables(model)
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
