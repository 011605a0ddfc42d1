"""The change that an autopsy calls tested is made in the script, and the script trains on."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bare_loop import Calculation, diagnose, train
from torch import Tensor, nn

from nangrid.records.autopsy import Autopsy
from nangrid.records.explain import explain

ROW = torch.tensor([[1.0, 2.0, 3.0]])
NOWHERE = torch.full((3,), -math.inf)
HIDDEN = torch.full((3,), torch.finfo(torch.float32).min)
Change = Callable[[Tensor], Tensor]


def both(script: Callable[[Tensor, bool], Tensor]) -> tuple[Change, Change]:
    """A script as it fails, and with the change made."""
    return partial(script, fixed=False), partial(script, fixed=True)


def mean_of_positives(x: Tensor, fixed: bool) -> Tensor:
    positive = x > 9
    count = positive.sum()
    return (x * positive).sum() / (count.clamp(min=1) if fixed else count)


def mean_of_chosen(x: Tensor, fixed: bool) -> Tensor:
    chosen = x[x > 9]
    return chosen.sum() / max(len(chosen), 1) if fixed else chosen.mean()


def spread_of_a_batch(x: Tensor, fixed: bool) -> Tensor:
    return x.std(0, correction=0) if fixed else x.std(0)


def attention_in_half_precision(x: Tensor, fixed: bool) -> Tensor:
    half = torch.finfo(torch.half)
    mask = HIDDEN.clamp(half.min, half.max).half() if fixed else HIDDEN.half()
    return (x.half() + mask).softmax(-1)[:, 0].float()


def attention_with_two_masks(x: Tensor, fixed: bool) -> Tensor:
    mask = (HIDDEN + HIDDEN).clamp(min=torch.finfo(torch.float32).min) if fixed else HIDDEN + HIDDEN
    return (x + mask).softmax(-1)[:, 0]


def transcript_without_alignment(x: Tensor, fixed: bool) -> Tensor:
    """Two frames have no room for a blank between two equal labels."""
    frames, labels = x.expand(2, 3)[:, None].log_softmax(-1), torch.tensor([[1, 1]])
    return F.ctc_loss(frames, labels, torch.tensor([2]), torch.tensor([2]), zero_infinity=fixed)


CASES: list[tuple[Change, Change, str, str]] = [
    (
        lambda x: (x - x.detach()).square().sum().sqrt(),
        lambda x: ((x - x.detach()).square().sum() + 1e-6).sqrt(),
        "eps=1e-06 under the root",
        "derivative-at-pole",
    ),
    (
        lambda x: (x - x.detach()).abs().log(),
        lambda x: (x - x.detach()).abs().clamp(min=1e-6).log(),
        "clamp(min=1e-06)",
        "log-of-zero",
    ),
    (
        lambda x: x * torch.rsqrt((x * 0).mean()),
        lambda x: x * torch.rsqrt((x * 0).mean() + 1e-6),
        "eps=1e-06 under the root",
        "zero-scale",
    ),
    (
        lambda x: torch.log1p(-x[:, 0]),
        lambda x: torch.log1p((-x[:, 0]).clamp(min=1e-6 - 1)),
        "clamp(min=-1+1e-06)",
        "log-of-zero",
    ),
    (lambda x: (x * 40).exp(), lambda x: (x * 40).clamp(max=20).exp(), "clamp(max=20)", "exp-overflow"),
    (lambda x: (x * 40).cosh(), lambda x: (x * 40).clamp(max=20).cosh(), "clamp(max=20)", "exp-overflow"),
    (
        lambda x: torch.acos(x[:, 0]),
        lambda x: torch.acos(x[:, 0].clamp(1e-6 - 1, 1 - 1e-6)),
        "inside -1 and 1",
        "derivative-at-pole",
    ),
    (
        lambda x: torch.asin(x),
        lambda x: torch.asin(x.clamp(1e-6 - 1, 1 - 1e-6)),
        "inside -1 and 1",
        "outside-domain",
    ),
    (
        lambda x: torch.atanh(x[:, 0]),
        lambda x: torch.atanh(x[:, 0].clamp(1e-6 - 1, 1 - 1e-6)),
        "inside -1 and 1",
        "outside-domain",
    ),
    (lambda x: (x * 0) ** 0.5, lambda x: (x * 0).clamp(min=1e-6) ** 0.5, "clamp(min=1e-06)", "derivative-at-pole"),
    (lambda x: x / (x * 0), lambda x: x / (x * 0 + 1e-6), "1e-06 in place of a divisor of 0", "unknown"),
    (
        lambda x: 1 / (x - 2),
        lambda x: 1 / torch.where(x == 2, 1e-6, x - 2),
        "1e-06 in place of a divisor of 0",
        "unknown",
    ),
    (
        lambda x: (x + NOWHERE).softmax(-1),
        lambda x: torch.where((x + NOWHERE == -math.inf).all(), 0, x).softmax(-1),
        "masked everywhere",
        "masked-row-softmax",
    ),
    (
        lambda x: (x.half() * 300).square().sqrt().float(),
        lambda x: (x.half() * 300).float().square().sqrt(),
        "in float32",
        "fp16-activation-overflow",
    ),
    (*both(mean_of_positives), "clamp the count to at least 1", "mean-over-nothing"),
    (*both(mean_of_chosen), "clamp the count to at least 1", "mean-over-nothing"),
    (*both(spread_of_a_batch), "pass correction=0", "mean-over-nothing"),
    (*both(attention_in_half_precision), "the most negative number of the narrower dtype", "mask-cast-to-infinity"),
    (*both(attention_with_two_masks), "clamp the sum of the masks", "double-mask-overflow"),
    (*both(transcript_without_alignment), "pass zero_infinity=True", "ctc-target-too-long"),
]


def assert_tested(autopsy: Autopsy, words: str, mechanism: str) -> None:
    """One change was tried, under which the step is finite, and the reader is told so."""
    assert autopsy.mechanism == mechanism, autopsy.explanation
    assert [trial.finite for trial in autopsy.cures] == [True] and words in autopsy.cures[0].change, autopsy.cures
    told = " ".join(explain(autopsy).split())
    assert f"{autopsy.cures[0].change}: tested, the step is finite" in told
    assert "no change of the operation tested it" not in told
    assert autopsy.cures[0].change not in [suggestion.advice for suggestion in autopsy.suggestions], "told once"


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize(("then", "cured", "words", "mechanism"), CASES)
def test_cure_of_the_replay_also_cures_the_script(
    then: Change, cured: Change, words: str, mechanism: str, tmp_path: Path
) -> None:
    autopsy = diagnose(Calculation(then), [ROW], tmp_path / "failing", lambda out: out.sum())
    assert_tested(autopsy, words, mechanism)
    losses = train(Calculation(cured), [ROW] * 3, tmp_path / "cured", lambda out: out.sum())
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize(
    ("make", "mechanism"),
    [(torch.optim.Adam, "adam-eps-underflow"), (torch.optim.RMSprop, "optimizer-eps-underflow")],
)
def test_larger_eps_of_the_optimizer(make: Any, mechanism: str, tmp_path: Path) -> None:
    def rows() -> Any:
        return nn.Embedding(5, 3).half()

    failing, cured, batch = rows(), rows(), torch.tensor([1])
    autopsy = diagnose(failing, [batch], tmp_path / "failing", optimizer=make(failing.parameters(), lr=1e-3))
    assert_tested(autopsy, "eps=0.0001 in the optimizer", mechanism)
    optimizer = make(cured.parameters(), lr=1e-3, eps=1e-4)
    assert all(map(math.isfinite, train(cured, [batch] * 3, tmp_path / "cured", optimizer=optimizer)))


def polynomial_decay(step: int, fixed: bool) -> float:
    """The share of the learning rate that is left of 2 steps; a negative number has no such power."""
    left = torch.tensor(1 - step / 2).pow(0.9)
    return float(torch.where(left.isnan(), 1.0, left) if fixed else left)


def test_schedule_past_its_end(tmp_path: Path) -> None:
    def scheduled(fixed: bool) -> tuple[nn.Module, dict[str, Any]]:
        model = nn.Linear(3, 1)
        sgd = torch.optim.SGD(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(sgd, partial(polynomial_decay, fixed=fixed))
        return model, {"optimizer": sgd, "scheduler": schedule}

    model, options = scheduled(fixed=False)
    autopsy = diagnose(model, [ROW] * 6, tmp_path / "failing", **options)
    assert autopsy.step == 3
    assert_tested(autopsy, "lr=0.01, with which the schedule began", "nonfinite-learning-rate")
    model, options = scheduled(fixed=True)
    assert all(map(math.isfinite, train(model, [ROW] * 6, tmp_path / "cured", **options)))


def test_missing_value_of_the_data(tmp_path: Path) -> None:
    missing = torch.tensor([[1.0, math.nan, 3.0]])
    autopsy = diagnose(nn.Linear(3, 1), [ROW, missing], tmp_path / "failing")
    assert_tested(autopsy, "0 in place of what is non-finite in batch of micro-batch 0", "nonfinite-data")
    losses = train(nn.Linear(3, 1), [ROW, missing.nan_to_num(0.0), ROW], tmp_path / "cured")
    assert all(map(math.isfinite, losses))


@pytest.mark.filterwarnings("ignore:std")
@pytest.mark.parametrize(
    ("then", "batch"),
    [
        (lambda x: (x * 40).exp() * 1e38, ROW),
        (lambda x: (x + (HIDDEN + HIDDEN) * 2).softmax(-1)[:, 0], ROW),
        (lambda x: (x.half() + HIDDEN.half() * 2).softmax(-1)[:, 0].float(), ROW),
        (lambda x: x.log(), torch.tensor([[1.0, math.nan, 0.0]])),
        (lambda x: (x - x.mean(0)) / x.std(0), ROW),
    ],
)
def test_change_that_does_not_help_is_told_as_such(then: Change, batch: Tensor, tmp_path: Path) -> None:
    """The change takes what failed away, but what follows fails on the same numbers."""
    autopsy = diagnose(Calculation(then), [batch], tmp_path, lambda out: out.sum())
    assert autopsy.mechanism != "unknown"
    assert [trial.finite for trial in autopsy.cures] == [False]
    advice = [suggestion.advice for suggestion in autopsy.suggestions]
    assert not any("tested" in text for text in advice)
    assert autopsy.cures[0].change not in advice, "nobody is told to try what did not help"


def test_clamp_is_no_cure_of_a_square(tmp_path: Path) -> None:
    """It would replace every negative number, and so hide the overflow."""
    square = Calculation(lambda x: ((x.half() * -300) ** 2).sqrt().float())
    assert_tested(diagnose(square, [ROW], tmp_path, lambda out: out.sum()), "in float32", "fp16-activation-overflow")


def test_rate_without_a_schedule_has_no_other_to_try(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    autopsy = diagnose(model, [ROW], tmp_path, optimizer=torch.optim.SGD(model.parameters(), lr=math.nan))
    assert (autopsy.mechanism, autopsy.cures) == ("nonfinite-learning-rate", [])
