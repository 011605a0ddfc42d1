"""Watches a loop that it only hands the batches to: optimizers, backward passes and clipping report to it.

A step is a window of iterations: it ends with the iteration in which an optimizer steps. Gradients are checked right
before the optimizer reads them, so that a loop may skip a batch or mend its gradients, and parameters right after.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, Protocol, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from nangrid.records.explain import explain
from nangrid.watch.body import bound_body
from nangrid.watch.body_step import BodyStep, as_loss
from nangrid.watch.clocks import StepReading
from nangrid.watch.deferred import IN_FLIGHT
from nangrid.watch.inspector import Inspector
from nangrid.watch.state.loop_objects import find_scaler, own_objects
from nangrid.watch.state.scaler import KeptScale, scale_of
from nangrid.watch.state.tensors import add_new_trainables, gradients, is_finite, present_gradients
from nangrid.watch.taps import tapping
from nangrid.watch.window import Iteration, Repeatable, Taken, Window

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")


class Observer(Protocol):
    """Follows the steps of a loop, see nangrid.watch.watch.WatchObserver."""

    def begin(self, step: int) -> None:
        """Called before a step."""

    def backward_done(self, step: int) -> None:
        """Called after the backward passes of a step."""

    def complete(self, readings: list[StepReading]) -> None:
        """Called with the readings of steps that are complete."""


class _PostponedError(BaseException):
    """Leaves a backward pass in which an optimizer step of a loop failed, so that the check runs after it."""

    def __init__(self, loop: BatchLoop, check: Callable[[], None]) -> None:
        super().__init__()
        self.loop, self.check = loop, check


# A loop that an exception has left stays alive with the traceback, and would hear of the next loop's steps.
_latest: WeakKeyDictionary[torch.optim.Optimizer, ref[BatchLoop]] = WeakKeyDictionary()


class BatchLoop:
    """Follows one loop from batch to batch, and stops it where a step fails."""

    def __init__(self, step: BodyStep, inspector: Inspector, observer: Observer, stop: Callable[[], None]) -> None:
        """`stop` raises the error of an onset, if there is one."""
        self.step = step
        self.inspector = inspector
        self.observer = observer
        self.stop = stop
        step.windows = type(step.windows)(maxlen=IN_FLIGHT + 2 if inspector.late else 1)
        self._window: Window | None = None
        self._steps = self._rounds = 0
        self._began = 0.0
        self._lr = math.nan
        self._scale: KeptScale | None = None
        self._modules: list[nn.Module] | None = None
        self._norm: Tensor | None = None
        self._clipped: Tensor | None = None
        self._in_backward = self._tapped = False
        self._hooks = [
            hook
            for optimizer in step.optimizers
            for hook in (
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            )
        ]
        for optimizer in step.optimizers:
            before = _latest.get(optimizer)
            if before is not None and (loop := before()) is not None:
                loop.retire()
            _latest[optimizer] = ref(self)

    def batches(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The batches of the loader; each round of the loop is watched until the next batch is drawn."""
        with self._tapping():
            for index, batch in enumerate(loader):
                self._begin(batch, bound_body(sys._getframe(1), index))
                try:
                    yield batch
                except GeneratorExit:
                    self._left(sys._getframe().f_back)
                    raise
                self._end()
            self.observer.complete(self.inspector.flush())
            self.stop()

    @contextmanager
    def round(self, batch: Any, body: Repeatable) -> Iterator[None]:
        """Watch the block, in which a loop that draws its batches elsewhere does with one of them what `body` does."""
        with self._tapping():
            self._begin(batch, body)
            try:
                yield
            except Exception as error:
                if self.inspector.clocks.onset is None and self._window is not None and not self._window.stepped:
                    self.inspector.raised(error)
                raise
            self._end()

    def close(self) -> None:
        """End the step under way and hear of no more."""
        try:
            self._end()
        finally:
            self.retire()

    def retire(self) -> None:
        """Hear of no more steps."""
        self._window = None
        for hook in self._hooks:
            hook.remove()

    def _begin(self, batch: Any, body: Repeatable | None) -> None:
        if self._window is not None and self._window.stepped:
            self._end()  # the optimizer ran after the loop before
        window = self._window
        if window is None:
            self.observer.begin(self._steps)
            self._began = time.perf_counter()
            self.inspector.begin(self._steps)
            window = self._window = Window()
            self.step.windows.append(window)
        elif not window.backwards or not self.step.holds_gradients():
            self.inspector.restart()
            window.clear()
        self._rounds += 1
        iteration = Iteration(self._rounds, batch, body, self._modules_of(body))
        window.iterations.append(iteration)
        self.inspector.micro_batch(batch, number=self._rounds)
        if self.step.live_scaler is None:
            self.step.live_scaler = find_scaler(iteration.reachable())
        self._scale = KeptScale(self.step.live_scaler) if self.step.live_scaler else None

    def _modules_of(self, body: Repeatable | None) -> list[nn.Module]:
        """The modules of the model that are written where the loop is, and may keep state in plain attributes."""
        if self._modules is None and body is not None:
            self._modules = own_objects(self.step.model.modules(), body.package)
        return self._modules or []

    def _end(self) -> None:
        """End an iteration, and with it the step if an optimizer has run."""
        # A loop may have caught the error.
        self.stop()
        window = self._window
        if window is None:
            return
        if window.stepped:
            readings = self.inspector.close(self._lr, time.perf_counter() - self._began)
            self._window = None
            self._steps += 1
            self.observer.complete(readings)
            self.stop()
        elif self._scale is not None and self._scale.has_shrunk():
            window.taken.append(Taken(None, window.backwards))
            self.inspector.skipped(window.losses)
            self.stop()
            window.taken.pop()

    def _left(self, frame: FrameType | None) -> None:
        """Explain why the loop was left, if a number was non-finite: by `break`, or by an exception of its own."""
        window, inspector = self._window, self.inspector
        if inspector.clocks.onset is not None:
            return
        self.observer.complete(inspector.flush())
        if inspector.clocks.onset is None:
            if window is None or window.stepped or frame is None:
                return
            if not any(map(_is_nonfinite, [*window.losses, *frame.f_locals.values()])):
                return
            inspector.left()
        if inspector.autopsy is not None:
            logger.error("the loop was left after a non-finite number\n%s", explain(inspector.autopsy))

    # Taps and hooks

    def backward(self, roots: list[Tensor], run: Callable[[], None]) -> None:
        """Run a backward pass of the loop."""
        if self.step.replaying:
            self.step.backward(roots, run)
            return
        window = self._window
        if window is None or self.inspector.replaying or self.inspector.clocks.onset is not None:
            run()
            return
        if window.carried is None:
            found = {name: p.grad for name, p in self.step.trainables.items() if p.grad is not None}
            window.carried = {name: gradient.detach().clone() for name, gradient in found.items()}
        losses = [as_loss(root, self.step.live_scaler) for root in roots]
        window.losses += losses
        self._norm = self._clipped = None
        self._run_backward(run)
        window.backwards += 1
        self.inspector.after_backward(losses)

    def _run_backward(self, run: Callable[[], None]) -> None:
        self._in_backward = True
        try:
            run()
        except _PostponedError as postponed:
            if postponed.loop is not self:
                raise
            self._in_backward = False
            postponed.check()
        finally:
            self._in_backward = False

    def clipping(self, norm: Tensor, limit: float) -> None:
        """Note the norm before the loop clips its gradients, and what they are divided by."""
        if self.step.replaying:
            self.step.clipping(norm)
        elif not self.inspector.replaying:
            self._norm = norm.detach()
            divided = ((self._norm + 1e-6) / limit).clamp(min=1.0)
            self._clipped = divided.nan_to_num(nan=1.0, posinf=1.0)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        if not self.step.replaying and (self._window is None or self.inspector.replaying):
            return None
        given = {"closure": args[1], **kwargs} if len(args) > 1 else kwargs
        if given.get("closure") is None:
            self._reached(optimizer)
            return None
        return args[:1], {**given, "closure": self._checking(given["closure"], optimizer)}

    def _checking(self, closure: Callable[[], Any], optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
        """The closure that an optimizer was given, with the check after it."""

        def checked() -> Any:
            loss = closure()
            self._reached(optimizer)
            return loss

        return checked

    def _reached(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at what the optimizer is about to read."""
        if self.step.replaying:
            self.step.before_step(optimizer)
        else:
            self._check(optimizer)

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        """Check losses and gradients before an optimizer reads them."""
        window = self._window
        assert window is not None
        add_new_trainables(self.step.model, self.step.optimizer, self.step.trainables)
        if not window.taken:
            self.observer.backward_done(self._steps)
        window.taken.append(Taken(optimizer, window.backwards, self._reduced()))
        if self._skips_unseen(optimizer):
            return
        trainables = self.step.trained_by(optimizer)
        self._outside_backward(lambda: self._check_gradients(optimizer), gradients(trainables).values())

    def _skips_unseen(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a fused optimizer skips this step for a GradScaler that nobody has passed to the watch."""
        skips = getattr(optimizer, "found_inf", None)
        return skips is not None and self.step.live_scaler is None and bool(skips)

    def _reduced(self) -> dict[str, Tensor]:
        """The gradients of all ranks together, which a replay on one rank needs to come to the next optimizer."""
        if self.inspector.ranks is None or len(self.step.optimizers) == 1:
            return {}
        return {name: gradient.clone() for name, gradient in present_gradients(self.step.trainables).items()}

    def _check_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        window, inspector = self._window, self.inspector
        assert window is not None
        trainables = self.step.trained_by(optimizer)
        self.step.will_update(trainables)
        inspector.losses(window.losses, of=trainables)
        window.losses = []
        # For a fused optimizer alone a GradScaler calls `step` even if it skips.
        scaler = self.step.live_scaler if hasattr(optimizer, "found_inf") else None
        inspector.gradients(scale_of(scaler), trainables, self._factor(optimizer))
        self.stop()
        inspector.norm(torch.zeros(()) if self._norm is None else self._norm)

    def _factor(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """What the gradients have to be multiplied by to be unscaled, and as they were before clipping."""
        # A fused optimizer unscales by itself.
        scale: Tensor | None = getattr(optimizer, "grad_scale", None)
        if scale is None:
            return self._clipped
        return scale.reciprocal() if self._clipped is None else self._clipped / scale

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.step.replaying:
            self.step.after_step(optimizer)
        elif self._window is not None and not self.inspector.replaying:
            self._window.stepped = True
            self._lr = float(self.step.optimizers[0].param_groups[0]["lr"])
            trainables = self.step.trained_by(optimizer)
            self._outside_backward(lambda: self._check_update(optimizer), trainables.values())

    def _check_update(self, optimizer: torch.optim.Optimizer) -> None:
        self.inspector.updated(of=self.step.trained_by(optimizer))
        self.stop()

    def _outside_backward(self, check: Callable[[], None], tensors: Iterable[Tensor]) -> None:
        """Run a check; one that will fail within a backward pass, only when that pass has been left."""
        # A replay runs backward passes, whose operations would be taken for those of the one under way.
        if self._in_backward and not self.inspector.late and not all(map(is_finite, tensors)):
            raise _PostponedError(self, check)
        with self._tapping():
            check()

    @contextmanager
    def _tapping(self) -> Iterator[None]:
        # An optimizer may step after the loop, where nothing is tapped any more.
        with nullcontext() if self._tapped else tapping(self):
            before, self._tapped = self._tapped, True
            try:
                yield
            finally:
                self._tapped = before


def _is_nonfinite(value: Any) -> bool:
    """Whether a variable of the loop is one number, and not a finite one."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, Tensor) and value.numel() == 1 and not is_finite(value)
