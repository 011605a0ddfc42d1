"""Asks sherlorch: a trace of each step with module tags; the first culprit of the loss, or of a gradient.

`capture_stack=True` would add source lines, but is off by default: it makes a step many times slower.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import sherlorch
from case import Case, Look
from tools.answer import Answer
from torch import Tensor


class Traced(Look):
    """Diagnoses the first bad loss or gradient of a step."""

    def __init__(self, case: Case) -> None:
        self.subject = case.build()
        self.tracker = sherlorch.trace()
        self.answer = Answer()

    def begin(self, step: int) -> None:
        super().begin(step)
        self.tracker.reset()

    def loss(self, loss: Tensor) -> None:
        self._diagnose(loss)

    def gradients(self) -> None:
        for parameter in self.subject.model.parameters():
            if parameter.grad is not None:
                self._diagnose(parameter.grad)

    def _diagnose(self, tensor: Tensor) -> None:
        if self.answer.step is not None or not self.tracker.has_issue(tensor):
            return
        self.answer.step = self.step
        try:
            culprits = self.tracker.diagnose(tensor).culprits
        except KeyError:  # a tensor that autograd made, which is not tracked
            return
        if culprits:
            first = culprits[0]
            self.answer.op = first.op_name
            self.answer.module = (first.module_path or "").removeprefix("model").removeprefix(".")


def ask(case: Case, folder: Path) -> Answer:
    traced = Traced(case)
    with traced.tracker:
        traced.tracker.watch(traced.subject.model, name="model")
        with contextlib.suppress(RuntimeError):  # a script may refuse its NaN some steps later
            traced.subject.run(case.horizon, traced)
    return traced.answer
