"""The change that an autopsy calls tested is made in the script, and the script trains on."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bare_loop import Calculation, diagnose, train
from torch import Tensor, nn

from nangrid.records.explain import explain

ROW = torch.tensor([[1.0, 2.0, 3.0]])
NOWHERE = torch.full((3,), -math.inf)
Change = Callable[[Tensor], Tensor]
CASES: list[tuple[Change, Change, str]] = [
    (
        lambda x: (x - x.detach()).square().sum().sqrt(),
        lambda x: ((x - x.detach()).square().sum() + 1e-6).sqrt(),
        "eps=1e-06",
    ),
    (
        lambda x: (x - x.detach()).abs().log(),
        lambda x: (x - x.detach()).abs().clamp(min=1e-6).log(),
        "clamp(min=1e-06)",
    ),
    (lambda x: x * torch.rsqrt((x * 0).mean()), lambda x: x * torch.rsqrt((x * 0).mean() + 1e-6), "eps=1e-06"),
    (lambda x: torch.log1p(-x[:, 0]), lambda x: torch.log1p((-x[:, 0]).clamp(min=1e-6 - 1)), "clamp(min=-1+1e-06)"),
    (lambda x: (x * 40).exp(), lambda x: (x * 40).clamp(max=20).exp(), "clamp(max=20)"),
    (lambda x: (x * 40).cosh(), lambda x: (x * 40).clamp(max=20).cosh(), "clamp(max=20)"),
    (lambda x: torch.acos(x[:, 0]), lambda x: torch.acos(x[:, 0].clamp(1e-6 - 1, 1 - 1e-6)), "inside -1 and 1"),
    (lambda x: torch.asin(x), lambda x: torch.asin(x.clamp(1e-6 - 1, 1 - 1e-6)), "inside -1 and 1"),
    (lambda x: torch.atanh(x[:, 0]), lambda x: torch.atanh(x[:, 0].clamp(1e-6 - 1, 1 - 1e-6)), "inside -1 and 1"),
    (lambda x: (x * 0) ** 0.5, lambda x: (x * 0).clamp(min=1e-6) ** 0.5, "clamp(min=1e-06)"),
    (lambda x: x / (x * 0), lambda x: x / torch.where(x * 0 == 0, 1e-6, x * 0), "in place of a divisor of 0"),
    (
        lambda x: (x + NOWHERE).softmax(-1),
        lambda x: torch.where((x + NOWHERE == -math.inf).all(), 0, x).softmax(-1),
        "masked everywhere",
    ),
    (
        lambda x: (x.half() * 300).square().sqrt().float(),
        lambda x: (x.half() * 300).float().square().sqrt(),
        "in float32",
    ),
]


@pytest.mark.parametrize(("then", "cured", "words"), CASES)
def test_cure_of_the_replay_also_cures_the_script(then: Change, cured: Change, words: str, tmp_path: Path) -> None:
    autopsy = diagnose(Calculation(then), [ROW], tmp_path / "failing", lambda out: out.sum())
    tested = [trial for trial in autopsy.cures if trial.finite]
    assert any(words in trial.change for trial in tested), autopsy.cures
    assert "tested, the step is finite" in " ".join(explain(autopsy).split())
    losses = train(Calculation(cured), [ROW] * 3, tmp_path / "cured", lambda out: out.sum())
    assert all(map(math.isfinite, losses))


def test_larger_eps_of_the_optimizer(tmp_path: Path) -> None:
    def rows() -> Any:
        return nn.Embedding(5, 3).half()

    autopsy = diagnose(rows(), [torch.tensor([1])], tmp_path / "failing")
    assert [(trial.change, trial.finite) for trial in autopsy.cures] == [("eps=0.0001 in the optimizer", True)]
    model = rows()
    adam = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-4)
    assert all(map(math.isfinite, train(model, [torch.tensor([1])] * 3, tmp_path / "cured", optimizer=adam)))


def test_change_that_does_not_help_is_told_as_such(tmp_path: Path) -> None:
    """The exponential is bounded, but what follows overflows on the same numbers."""
    autopsy = diagnose(Calculation(lambda x: (x * 40).exp() * 1e38), [ROW], tmp_path, lambda out: out.sum())
    assert [trial.finite for trial in autopsy.cures] == [False]
    assert not any("tested" in suggestion.advice for suggestion in autopsy.suggestions)
