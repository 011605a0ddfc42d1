"""Asks trainscope: a recorded run as its README shows it, and the step that `trainscope report` calls the explosion.

That is the first loss that is non-finite, or ten times as large as the mean. It names no operation, module or line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from case import Case, Look
from tools.answer import Answer
from torch import Tensor
from trainscope import TrainScope
from trainscope.core.config import TrainScopeConfig
from trainscope.report import build_run_report

logging.getLogger("trainscope").setLevel(logging.ERROR)


class Recorded(Look):
    """Calls `scope.step` between backward and optimizer, as the README asks for."""

    def __init__(self, scope: TrainScope) -> None:
        self.scope = scope
        self.last = 0.0

    def loss(self, loss: Tensor) -> None:
        self.last = float(loss.detach())

    def gradients(self) -> None:
        self.scope.step(self.last, batch_index=self.step)


def ask(case: Case, folder: Path) -> Answer:
    subject = case.build()
    config = TrainScopeConfig(run_dir=str(folder), run_name="run")
    scope = TrainScope(subject.model, subject.optimizer, config=config).attach()
    with contextlib.suppress(RuntimeError):  # a script may refuse its NaN some steps later
        subject.run(case.horizon, Recorded(scope))
    scope.detach()
    report = asyncio.run(build_run_report(folder / "run"))
    return Answer(step=report["signal_signature"]["explosion_step"])
