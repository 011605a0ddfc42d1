"""Attaches the watch to a Trainer of Lightning, by the one call in which its loop trains on a batch.

That call is wrapped on this trainer alone: forward, backward, clipping and the optimizer stay Lightning's own. In a
replay Lightning is called again for the same batch, with its counters as they were and without its logs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from nangrid.records.errors import InputError
from nangrid.watch import Watch
from nangrid.watch.body import package_of


class LightningWatch(Callback):
    """Stops a Trainer of Lightning at the first non-finite value and explains where it arose.

        trainer = lightning.Trainer(callbacks=[LightningWatch(out_dir="autopsy")])
        trainer.fit(model, loader)

    `fit` raises NonFiniteError, before the update if a loss or gradient is non-finite. Automatic and manual
    optimization, accumulation, clipping and mixed precision are covered. See `Watch` for the arguments.
    """

    def __init__(
        self,
        out_dir: str | Path = "autopsy",
        *,
        texts: Mapping[int, str] | None = None,
        keep_every: int = 0,
        snapshot: str = "auto",
    ) -> None:
        self.out_dir = out_dir
        self.options: dict[str, Any] = {"texts": texts, "keep_every": keep_every, "snapshot": snapshot}
        self.watch: Watch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the watch, because the optimizers exist from here on."""
        strategy = trainer.strategy
        if type(strategy) not in (SingleDeviceStrategy, DDPStrategy):  # DeepSpeed's is a DDPStrategy
            raise InputError(
                f"LightningWatch does not support {type(strategy).__name__}: train on one device, or with "
                'strategy="ddp".'
            )
        self.watch = Watch(pl_module, trainer.optimizers, self.out_dir, **self.options)
        for optimization in _optimizations(trainer):
            optimization.run = self._watched(trainer, optimization.run)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the last steps."""
        _leave(trainer)
        self.watch.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Look at no more steps."""
        _leave(trainer)
        if hasattr(self, "watch"):
            self.watch.follow().retire()

    def _watched(self, trainer: Trainer, run: Callable[..., Any]) -> Callable[..., Any]:
        """`run`, which trains on one batch, under the watch."""
        loop = self.watch.follow()

        def watched(*arguments: Any) -> Any:
            if "batch" not in arguments[-1]:
                raise InputError("LightningWatch does not support dataloader_iter: let training_step take a batch.")
            body = _TrainingStep(trainer, run, arguments)
            with loop.round(arguments[-1]["batch"], body):
                return run(*arguments)

        return watched


class _TrainingStep:
    """What Lightning does with one batch; implements nangrid.watch.window.Repeatable."""

    def __init__(self, trainer: Trainer, run: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """`arguments`: those of `run`; the last holds the batch."""
        self.package = package_of(type(trainer.lightning_module).__module__)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self.objects = [*schedulers, getattr(trainer.precision_plugin, "scaler", None)]
        self._trainer = trainer
        self._run = run
        self._arguments = arguments
        self._progress = _progress(trainer)

    def run(self, batch: Any) -> None:
        """Train on the batch again."""
        *before, keywords = self._arguments
        with _unnoticed(self._trainer):
            _set_progress(self._trainer, self._progress)
            self._run(*before, OrderedDict(keywords, batch=batch))


@contextmanager
def _unnoticed(trainer: Trainer) -> Iterator[None]:
    """Within the block Lightning neither logs nor profiles; at its end its counters are as before."""
    module = trainer.lightning_module
    progress, hook = _progress(trainer), module._current_fx_name
    # A profiler refuses to begin what the live step is still in.
    silent = mock.patch.object(trainer, "profiler", PassThroughProfiler())
    try:
        with silent, mock.patch.object(module, "log", lambda *args, **kwargs: None):
            yield
    finally:
        _set_progress(trainer, progress)
        module._current_fx_name = hook


def _optimizations(trainer: Trainer) -> list[Any]:
    """The two parts of Lightning's loop of which one trains on each batch."""
    loop = trainer.fit_loop.epoch_loop
    return [loop.automatic_optimization, loop.manual_optimization]


def _leave(trainer: Trainer) -> None:
    for optimization in _optimizations(trainer):
        vars(optimization).pop("run", None)


def _counters(trainer: Trainer) -> list[Any]:
    """What tells Lightning whether it accumulates, and which step it is at."""
    automatic, manual = _optimizations(trainer)
    return [trainer.fit_loop.epoch_loop.batch_progress, automatic.optim_progress, manual.optim_step_progress]


def _progress(trainer: Trainer) -> list[dict[str, Any]]:
    return [counter.state_dict() for counter in _counters(trainer)]


def _set_progress(trainer: Trainer, progress: list[dict[str, Any]]) -> None:
    for counter, state in zip(_counters(trainer), progress, strict=True):
        counter.load_state_dict(state)
