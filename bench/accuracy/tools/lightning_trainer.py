"""Asks Lightning's two detectors: `Trainer(detect_anomaly=True)`, and `EarlyStopping(check_finite=True)` on the loss.

The loop is a LightningModule with manual optimisation. Each step is an epoch of its own, because EarlyStopping looks at
the end of an epoch.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from case import Case, Loop
from pytorch_lightning.callbacks import EarlyStopping
from tools.anomaly_mode import anomaly
from tools.answer import Answer
from torch import Tensor

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Module(lightning.LightningModule):
    """A loop of the bank; one training step is one step of its optimizer."""

    def __init__(self, subject: Loop) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model, self.subject, self.step = subject.model, subject, -1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.subject.optimizer

    def training_step(self, batch: Tensor, index: int) -> None:
        subject, self.step = self.subject, self.step + 1
        subject.optimizer.zero_grad()
        for call in range(self.step * subject.accumulate, (self.step + 1) * subject.accumulate):
            loss = subject.closure(call)(*subject.arguments(call))
        subject.unscale()
        subject.update()
        subject.after(self.step)
        self.log("loss", loss.detach())


def ask_early_stopping(case: Case, folder: Path) -> Answer:
    stopping = EarlyStopping("loss", patience=case.horizon + 1, check_finite=True, check_on_train_epoch_end=True)
    module = Module(case.build())
    _fit(module, case.horizon, callbacks=[stopping])
    # Patience is longer than the run, so that nothing else stops it.
    return Answer(step=module.step if "not finite" in (stopping.stopping_reason_message or "") else None)


def ask_anomaly(case: Case, folder: Path) -> Answer:
    module = Module(case.build())
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            _fit(module, case.horizon, detect_anomaly=True)
        except RuntimeError as error:
            return anomaly(error, heard, module.step)
    return Answer()


def _fit(module: Module, steps: int, **options: Any) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    # A generator for itself, so that the loader draws nothing from the one that the script draws from.
    trainer.fit(module, torch.utils.data.DataLoader([torch.zeros(())], generator=torch.Generator()))
