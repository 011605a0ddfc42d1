"""Attaches the watch to a transformers.Trainer without changing a bit of its arithmetic.

The `on_pre_optimizer_step` callback fires after clipping. Gradients are therefore read where Accelerate unscales them,
the one place that every path to clipping passes: after a GradScaler, and before the first gradient is changed.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle
from transformers import Trainer, TrainerCallback

from nangrid.records.explain import explain
from nangrid.watch import Clocks, StepReading
from nangrid.watch.autopsy.examine import Background
from nangrid.watch.deferred import inspector_for
from nangrid.watch.inspector import Inspector
from nangrid.watch.ranks.sharded import is_sharded
from nangrid.watch.ranks.wrappers import engine_among, refuse_parallelism
from nangrid.watch.ranks.zero import ZeroOptimizer
from nangrid.watch.state.loop_objects import Restore, attributes
from nangrid.watch.state.optimizers import unwrapped
from nangrid.watch.state.random_state import random_states
from nangrid.watch.state.recorder import FailedEvalBatch, SnapshotPolicy, shallow
from nangrid.watch.state.scaler import scale_of
from nangrid.watch.state.snapshot import MicroBatch
from nangrid.watch.state.tensors import trainables

logger = logging.getLogger(__name__)


class TrainerStep:
    """The parts of a Trainer's optimizer step, as they were before the trainer was watched."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.model: nn.Module = trainer.model
        self.trainables = trainables(self.model)
        self._training_step = trainer.training_step
        self._prediction_step = trainer.prediction_step
        self._get_grad_norm = trainer._get_grad_norm
        self.zero: ZeroOptimizer | None = None
        """The optimizer of DeepSpeed, if the trainer uses it."""

    def use(self, engine: Any) -> ZeroOptimizer:
        """Train by an engine of DeepSpeed; its optimizer."""
        self.zero = zero = ZeroOptimizer.of(engine)
        self.trainables = zero.trainables
        return zero

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, which the trainer makes when training begins."""
        return unwrapped(self.trainer.optimizer) if self.zero is None else cast(torch.optim.Optimizer, self.zero)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """Accelerate's GradScaler, if there is one."""
        scaler: torch.amp.GradScaler | None = self.trainer.accelerator.scaler
        return scaler

    def restorers(self) -> list[Restore]:
        """Functions that give the trainer's own attributes, such as the completions of a GRPOTrainer, their values."""
        return [*attributes(self.trainer), *attributes(self.trainer.state)]

    def forward_backward(self, micro_batch: MicroBatch) -> Tensor:
        """Loss of the trainer's own training_step; in an evaluation, of its prediction_step."""
        with _disable_current_modes():
            now = self.restorers()
            for restore in micro_batch.restorers:
                restore()
        try:
            return self._loss(micro_batch)
        finally:
            with _disable_current_modes():
                for restore in now:
                    restore()

    def _loss(self, micro_batch: MicroBatch) -> Tensor:
        loss: Tensor
        if not self.model.training:
            loss, *_ = self._prediction_step(self.trainer.model, micro_batch.inputs, prediction_loss_only=True)
            return loss
        extra = dict(micro_batch.extra)
        usual = self.trainer.args.gradient_accumulation_steps
        self.trainer.current_gradient_accumulation_steps = extra.pop("accumulation", usual)
        loss = self._training_step(self.trainer.model_wrapped, micro_batch.inputs, **extra)
        return loss

    def clip(self) -> Tensor:
        """Clip as the trainer does; the norm before clipping."""
        if self.zero is not None:
            return torch.zeros(())  # DeepSpeed clips within its step
        clips = self.trainer.args.max_grad_norm > 0
        norm = self.trainer._clip_grad_norm(self.trainer.model_wrapped) if clips else None
        return torch.as_tensor(self._get_grad_norm(self.trainer.model_wrapped, grad_norm=norm))

    def update(self) -> None:
        """Take the optimizer step."""
        self.optimizer.step()


class TrainerWatch(TrainerCallback):
    """The callback that drives the inspector of one `Trainer`."""

    def __init__(
        self,
        trainer: Trainer,
        out_dir: Path | None,
        background: Background,
        on_step: Callable[[StepReading], None] | None,
        keep_every: int,
    ) -> None:
        self.trainer = trainer
        self.step = TrainerStep(trainer)
        self.out_dir = out_dir
        self.background = background
        self.on_step = on_step
        # a resumed run has other weights when training begins
        self.policy = SnapshotPolicy(keep_every, {name: p.detach().clone() for name, p in self.step.trainables.items()})
        self.inspector: Inspector
        self.started_at = 0.0
        """time.perf_counter() at the beginning of the first step."""
        self._began = 0.0
        self._lr = 0.0
        self._complete: list[StepReading] = []
        """Readings that were not delivered yet."""
        self._failed: FailedEvalBatch | None = None
        self._heard: Any = None
        """The accelerator whose losses are read, for DeepSpeed."""
        self._hooks: list[RemovableHandle] = []
        """Those of DeepSpeed's step."""

    @property
    def clocks(self) -> Clocks:
        """The clocks of the run."""
        return self.inspector.clocks

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the inspector, because the optimizer exists from here on."""
        model, optimizer = self.trainer.model_wrapped, self.step.optimizer
        refuse_parallelism([model], [optimizer])
        if is_sharded(model):
            # It has other parameters than before it was sharded.
            self.step.model, self.step.trainables = model, trainables(model)
            self.policy = replace(self.policy, initial=None)
        if engine_among([model]) is not None:
            self._follow(model)
        self.inspector = inspector_for(self.step, self.out_dir, self.background, self.policy)

    def _follow(self, engine: Any) -> None:
        """Read what an engine of DeepSpeed steps on, which it does within the trainer's last backward pass."""
        zero = self.step.use(engine)
        self.policy = replace(self.policy, initial=None)
        if self._heard is not self.trainer.accelerator:
            self._heard = self.trainer.accelerator
            _before(self._heard, "backward", self._read_loss)
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            zero.register_step_pre_hook(lambda *_: self._read_gradients(zero.scale.get_scale(), unscaled=False)),
            zero.register_step_post_hook(lambda *_: self._read_update()),
        ]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open a step."""
        self._began = time.perf_counter()
        self.started_at = self.started_at or self._began
        self.inspector.begin(state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check parameters and optimizer state after the optimizer step."""
        if self.step.zero is None:
            self._read_update()

    def _read_loss(self, loss: Tensor) -> None:
        if not self.inspector.replaying:
            self.inspector.loss(loss)

    def _read_update(self) -> None:
        self._lr = float(self.step.optimizer.param_groups[0]["lr"])
        self.inspector.updated()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Close the step, and stop once the run can show nothing more."""
        self._complete += self.inspector.close(self._lr, time.perf_counter() - self._began)
        if control.should_evaluate:
            self._complete += self.inspector.flush()
        else:
            self._deliver()
            self._stop_if_done(control)
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> Any:
        """Note the evaluation loss, at the step that it followed."""
        failed, self._failed = self._failed, None
        if "eval_loss" in metrics and state.global_step and self.clocks.readings:
            # transformers drops non-finite batches from its mean
            self.inspector.evaluated(float(failed.loss.mean()) if failed else metrics["eval_loss"], failed)
            self._deliver()
            self._stop_if_done(control)
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Deliver the last readings, and log the autopsy if there is one."""
        self._complete += self.inspector.finish()
        self._deliver()
        autopsy = self.inspector.autopsy or self.inspector.frozen
        if self.inspector.unexplained:
            logger.error(self.inspector.unexplained)
        if autopsy is not None:
            logger.error("training went non-finite at step %d\n%s", autopsy.step, explain(autopsy))
            logger.error("autopsy: %s", self.inspector.autopsy_place)

    def _deliver(self) -> None:
        """Pass the complete readings to `on_step`."""
        complete, self._complete = self._complete, []
        for reading in complete:
            if self.on_step:
                self.on_step(reading)

    def _stop_if_done(self, control: Any) -> None:
        if self.clocks.done:
            control.should_training_stop = True

    def attach(self) -> None:
        """Wrap the trainer's methods, on this instance only."""
        trainer, original = self.trainer, self.trainer.training_step

        @functools.wraps(original)
        def training_step(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            # the last step of an epoch may have fewer micro-batches
            micro_batches = trainer.current_gradient_accumulation_steps
            self.inspector.micro_batch(
                inputs,
                restorers=self.step.restorers(),
                num_items_in_batch=num_items_in_batch,
                accumulation=micro_batches,
            )
            try:
                loss: Tensor = original(model, inputs, num_items_in_batch=num_items_in_batch)
            except Exception as error:
                self.inspector.raised(error)
                raise
            if self.step.zero is None:
                self.inspector.loss(loss)
            return loss

        trainer.training_step = training_step
        trainer.prediction_step = self._recording_failure(trainer.prediction_step)
        accelerator = trainer.accelerator
        _after(accelerator, "unscale_gradients", lambda _: self._read_gradients(scale_of(accelerator.scaler)))
        _after(trainer, "_get_grad_norm", lambda norm: self.inspector.norm(norm))
        trainer.add_callback(self)

    def _recording_failure(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`original`, which also keeps the first batch of an evaluation with a non-finite loss."""

        @functools.wraps(original)
        def prediction_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            batch, rng = shallow(inputs), random_states()
            result = original(model, inputs, *args, **kwargs)
            loss = result[0]
            if self._failed is None and loss is not None and not math.isfinite(loss.mean()):
                self._failed = FailedEvalBatch(batch, rng, loss.detach())
            return result

        return prediction_step

    def _read_gradients(self, scale: Tensor | float, unscaled: bool = True) -> None:
        """Check the gradients, unless a replay runs."""
        if not self.inspector.replaying:
            self.inspector.gradients(scale, clipped=None if unscaled else 1 / scale)


def _after(obj: Any, method: str, then: Callable[[Any], None]) -> None:
    """Call `then` with each result of `obj.method`, on this instance only."""
    original = getattr(obj, method)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        then(result)
        return result

    setattr(obj, method, watched)


def _before(obj: Any, method: str, then: Callable[[Any], None]) -> None:
    """Call `then` with the first argument of `obj.method` before it runs, on this instance only."""
    original = getattr(obj, method)

    @functools.wraps(original)
    def watched(first: Any, *args: Any, **kwargs: Any) -> Any:
        then(first)
        return original(first, *args, **kwargs)

    setattr(obj, method, watched)


def watch_trainer(
    trainer: Trainer,
    out_dir: str | Path | None = "autopsy",
    *,
    background: Background | None = None,
    on_step: Callable[[StepReading], None] | None = None,
    keep_every: int = 0,
) -> TrainerWatch:
    """Watch a trainer: at the first non-finite value, replay the step and write its autopsy to `out_dir`.

    Training continues until the loss is non-finite too (at most 3 steps), then stops by itself. Works on any
    transformers.Trainer, including TRL's: gradient accumulation, an overridden `compute_loss`, clipping on or off,
    evaluation between steps.

        watch_trainer(trainer, out_dir="autopsy")
        trainer.train()

    `out_dir=None`: only the clocks run, nothing is replayed or written. `on_step` gets the reading of each finished
    step. `keep_every`: steps between two snapshots kept in `out_dir/kept` while everything is finite (the last two
    stay; 0 keeps none), from which a run can resume.
    """
    watch = TrainerWatch(
        trainer,
        None if out_dir is None else Path(out_dir),
        background or _default_background(trainer),
        on_step,
        keep_every,
    )
    watch.attach()
    return watch


def _default_background(trainer: Trainer) -> Background:
    tokenizer = getattr(trainer, "processing_class", None)
    texts = _Texts(tokenizer) if hasattr(tokenizer, "decode") else {}
    return Background(texts=texts, requested_storage="bfloat16" if trainer.args.bf16 else None)


class _Texts(dict[int, str]):
    """Texts of token ids, decoded on demand."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def get(self, token: int, default: Any = None) -> Any:
        return self.tokenizer.decode([token])
