"""How does the watch ride on transformers.Trainer without changing a bit of its arithmetic?

`on_pre_optimizer_step` fires after clipping, so the gradients are read where Accelerate unscales them: the
one place that every path to clipping passes, after a GradScaler and before the first gradient is changed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from nangrid.watch import Clocks, Reading


class TrainerWatch(TrainerCallback):
    """The clocks of one `Trainer`, and the callback that winds them."""

    def __init__(self, trainer: Trainer, on_step: Callable[[Reading], None] | None = None) -> None:
        self.trainer = trainer
        self.clocks = Clocks({n: p for n, p in trainer.model.named_parameters() if p.requires_grad})
        self.on_step = on_step
        self.started_at = 0.0
        """time.perf_counter() at the beginning of the first step."""
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the step."""
        self._began = time.perf_counter()
        if not self.clocks.readings:
            self.started_at = self._began
        self.clocks.begin(state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check what the optimizer step left behind."""
        optimizer = self.trainer.optimizer
        self.clocks.reading.lr = optimizer.param_groups[0]["lr"]
        self.clocks.updated(unwrapped(optimizer))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stop once nothing more is to be learned."""
        self.clocks.reading.seconds = time.perf_counter() - self._began
        if not control.should_evaluate:
            self._close(control)
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> Any:
        """Note the evaluation loss, with the step it followed."""
        if self.clocks.readings and "eval_loss" in metrics:
            self.clocks.evaluated(metrics["eval_loss"])
            self._close(control)
        return control

    def _close(self, control: Any) -> None:
        if self.on_step:
            self.on_step(self.clocks.reading)
        if self.clocks.done:
            control.should_training_stop = True

    def read_gradients(self) -> None:
        """Check the gradients; a GradScaler above scale 1 may still shrink its scale and retry."""
        scaler = self.trainer.accelerator.scaler
        searching = scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1
        self.clocks.gradients(ignore_nonfinite=searching)


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside Accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _after(obj: Any, method: str, then: Callable[[Any], None]) -> None:
    """Call `then` with each result of `obj.method`, on this instance only."""
    original = getattr(obj, method)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        then(result)
        return result

    setattr(obj, method, watched)


def watch_trainer(trainer: Trainer, on_step: Callable[[Reading], None] | None = None) -> TrainerWatch:
    """Attach the clocks to a trainer; training stops by itself once the loss clock has rung.

    `on_step` gets each finished step's reading. Works with gradient accumulation, an overridden
    `compute_loss`, clipping on or off, and evaluation between steps.
    """
    watch = TrainerWatch(trainer, on_step)

    def note_norm(norm: Any) -> None:
        watch.clocks.reading.grad_norm = float(norm.item() if isinstance(norm, torch.Tensor) else norm)

    _after(trainer, "training_step", watch.clocks.micro_batch)
    _after(trainer.accelerator, "unscale_gradients", lambda _: watch.read_gradients())
    _after(trainer, "_get_grad_norm", note_norm)
    trainer.add_callback(watch)
    return watch
