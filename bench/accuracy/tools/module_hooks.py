"""Asks forward and backward hooks on every module, as fairseq's NanDetector sets them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from case import Case
from observer import is_bad
from tools.answer import Answer, Counting
from torch.utils._pytree import tree_leaves


class Stop(Exception):
    """Ends the run at the first non-finite output or gradient."""


def ask(case: Case, folder: Path) -> Answer:
    bare = Counting(case)
    answer = Answer()

    def check(name: str, where: str, values: Any) -> None:
        if any(map(is_bad, tree_leaves(values))):
            answer.step, answer.module, answer.where = bare.step, name, where
            raise Stop

    def forward(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: check(name, "output", output)

    def backward(name: str) -> Callable[..., None]:
        return lambda module, gradient_in, gradient_out: check(name, "gradient", gradient_out)

    for name, module in bare.subject.model.named_modules():
        module.register_forward_hook(forward(name))
        module.register_full_backward_hook(backward(name))
    with contextlib.suppress(Stop):
        bare.run()
    return answer
