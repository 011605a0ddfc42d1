"""Runs the optimizer step of a loop again by running the body of the loop, up to where the step failed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nangrid.watch.autopsy.replay import RAISED, NotRepeatableError, WholeStep, nonfinite
from nangrid.watch.autopsy.trace import Progress
from nangrid.watch.ranks.sharded import has_unreduced_gradients
from nangrid.watch.ranks.zero import zero_of
from nangrid.watch.state.loop_objects import restorers
from nangrid.watch.state.optimizers import together
from nangrid.watch.state.random_state import set_random_states
from nangrid.watch.state.scaler import orders, unscaled
from nangrid.watch.state.snapshot import MicroBatch, Snapshot
from nangrid.watch.state.tensors import gradients, state_tensors
from nangrid.watch.window import Iteration, Window


class _ReachedError(BaseException):
    """Ends the body where the step failed. Not an Exception, because loops catch those and continue."""


class _LeftError(Exception):
    """The body came to its end, as it did in the live run."""


class BodyStep(WholeStep):
    """The step of a loop whose body runs forward, backward and optimizers by itself."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], trainables: dict[str, nn.Parameter]
    ) -> None:
        self.model = model
        self.optimizers = list(optimizers)
        self.trainables = trainables
        self.progress = Progress()
        self.scaler: torch.amp.GradScaler | None = None
        """None: the body unscales by itself, and the scaler is restored with the loop's other objects."""
        self.live_scaler: torch.amp.GradScaler | None = None
        self.windows: deque[Window] = deque(maxlen=1)
        self.replaying = False
        """Whether the body runs again; hooks and taps then report to this step."""
        self._together = together(self.optimizers)
        self._updated: dict[str, nn.Parameter] = self.trainables
        self._of: dict[tuple[int, int], dict[str, nn.Parameter]] = {}
        self._window = Window()
        self._ends_by_itself = False
        self._taken = self._backwards = 0
        self._roots: list[Tensor] = []
        self._norm = torch.zeros(())
        self._done = False

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizers of the loop as one."""
        return self._together

    @property
    def updated(self) -> Mapping[str, nn.Parameter]:
        """The trainables of the optimizer that the body has come to."""
        return self._updated

    def holds_gradients(self) -> bool:
        """Whether the next backward pass adds to gradients."""
        # ZeRO moves them to its buffers, and zeroes them when it steps.
        return zero_of(self) is not None or bool(gradients(self.trainables)) or has_unreduced_gradients(self.model)

    def trained_by(self, optimizer: torch.optim.Optimizer | None) -> dict[str, nn.Parameter]:
        """The trainables of one of the optimizers, by name; of all for none."""
        if optimizer is None or len(self.optimizers) == 1:
            return self.trainables
        key = (id(optimizer), len(self.trainables))
        if key not in self._of:
            own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            self._of[key] = {name: p for name, p in self.trainables.items() if id(p) in own}
        return self._of[key]

    def will_update(self, trainables: dict[str, nn.Parameter]) -> None:
        """Note which trainables the live loop is about to update."""
        self._updated = trainables

    @contextmanager
    def repeating(self, snapshot: Snapshot) -> Iterator[None]:
        """Put the loop's objects, its batch and the gradients it began with back within the block."""
        window = self._window = self._window_of(snapshot)
        first = window.iterations[0]
        now = [restore for iteration in window.iterations for restore in iteration.restorers_now()]
        now += restorers([self.live_scaler])  # which may not be among the loop's objects
        now += map(orders, self.optimizers)
        live = {name: parameter.grad for name, parameter in self.trainables.items()}
        self._taken, self._backwards, self._done = 0, 0, False
        self._ends_by_itself = snapshot.clock == RAISED
        try:
            for iteration in window.iterations:
                iteration.restore()
            first.restore()
            if self.live_scaler is not None and "scale" in snapshot.scaler:
                state = self.live_scaler.state_dict() | {"scale": snapshot.scaler["scale"]}
                self.live_scaler.load_state_dict(state)
            for name, gradient in (window.carried or {}).items():
                if type(gradient) is Tensor:  # a shard is the sum of all ranks
                    self.trainables[name].grad = gradient.clone()
            yield
        finally:
            for restore in now:
                restore()
            for name, parameter in self.trainables.items():
                parameter.grad = live.get(name)

    def _window_of(self, snapshot: Snapshot) -> Window:
        numbers = {micro_batch.extra["number"] for micro_batch in snapshot.micro_batches}
        for window in self.windows:
            if window.iterations and {iteration.number for iteration in window.iterations} == numbers:
                return window
        raise NotRepeatableError("its iterations are no longer known.")

    def _iteration_of(self, micro_batch: MicroBatch) -> Iteration:
        number = micro_batch.extra["number"]
        return next(iteration for iteration in self._window.iterations if iteration.number == number)

    def forward_backward(self, micro_batch: MicroBatch) -> Tensor:
        """Run the body for one batch, up to the optimizer step that failed; the loss is what backward began with."""
        iteration = self._iteration_of(micro_batch)
        if iteration is not self._window.iterations[0]:
            with _disable_current_modes():
                iteration.restore()
                set_random_states(iteration.rng)
        self._roots = []
        self.replaying = True
        try:
            with suppress(_ReachedError):
                iteration.run(micro_batch.inputs)
                last = iteration is self._window.iterations[-1]
                # A body that goes further than the live one did was not left.
                if self._ends_by_itself and last and self._backwards == self._window.backwards:
                    raise _LeftError
        finally:
            self.replaying = False
        return total(self._roots)

    def clip(self) -> Tensor:
        """The norm that the body has clipped by, or 0."""
        return self._norm

    def update(self) -> None:
        """Take the optimizer step that the body was stopped at."""
        optimizer = self._window.taken[-1].optimizer if self._window.taken else None
        if not self._done and optimizer is not None:
            optimizer.step()

    # While the body runs again, its optimizers and backward passes report here.

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop at the live run's last optimizer step, or at an earlier one that would read non-finite gradients."""
        if self._taken < len(self._window.taken) and self._backwards < self._window.taken[self._taken].backwards:
            return  # an engine is told of every micro-batch, and steps after the last
        self._taken += 1
        self._updated = self.trained_by(optimizer)
        if self._taken >= len(self._window.taken) or nonfinite(gradients(self._updated)):
            raise _ReachedError
        for name, gradient in self._window.taken[self._taken - 1].reduced.items():
            self.trainables[name].grad = gradient.clone()
        self.progress.phase = "optimizer"

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop if the update made a number non-finite."""
        self.progress.phase = "forward"
        state = {str(number): tensor for number, tensor in enumerate(state_tensors(optimizer))}
        if nonfinite(self.trained_by(optimizer)) or nonfinite(state):
            self._done = True
            raise _ReachedError

    def backward(self, roots: list[Tensor], run: Callable[[], None]) -> None:
        """Run a backward pass; stop after it if the next optimizer would read non-finite gradients."""
        self._roots += [as_loss(root, self.live_scaler) for root in roots]
        run()
        self._backwards += 1
        following = self._window.taken[self._taken] if self._taken < len(self._window.taken) else None
        if following is not None and following.backwards == self._backwards:
            self._updated = self.trained_by(following.optimizer)
            # Here, before the loop clips, a NaN has not spread to all gradients yet.
            if nonfinite(gradients(self._updated)):
                raise _ReachedError

    def clipping(self, norm: Tensor) -> None:
        """Note the norm that the body clips by."""
        self._norm = norm.detach()


def as_loss(root: Tensor, scaler: torch.amp.GradScaler | None) -> Tensor:
    """The loss behind the root of a backward pass: one number, without the scale."""
    root = root.detach()
    number = root.reshape(()) if root.numel() == 1 else root.sum()
    return unscaled(number, scaler)


def total(losses: list[Tensor]) -> Tensor:
    """The losses of one body as one tensor."""
    if not losses:
        return torch.zeros(())
    return losses[0] if len(losses) == 1 else torch.stack([loss.float() for loss in losses])
