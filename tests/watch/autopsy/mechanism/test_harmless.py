"""A harmless infinity or NaN of each kind trips no clock, and is not named when the step fails for another reason."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bare_loop import diagnose, train
from torch import Tensor, nn

ROW = torch.tensor([[1.0, 2.0, 3.0]])
Harmless = Callable[[Tensor], Tensor]


class Sum(nn.Module):
    """The sum of a layer's output, and of something that was mended; a large gain makes it overflow."""

    def __init__(self, harmless: Harmless) -> None:
        super().__init__()
        self.layer, self.harmless = nn.Linear(3, 3, bias=False), harmless
        nn.init.eye_(self.layer.weight)

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        kept = torch.where(x.isfinite(), x, 0)
        return self.layer(kept).sum() * gain + self.harmless(kept)


def mended(values: Tensor) -> Tensor:
    """A number that does not depend on what is non-finite, of which there is something."""
    assert not values.isfinite().all()
    return torch.where(values.isfinite(), values, 0).sum()


def hidden_slope(x: Tensor) -> Tensor:
    """The slope of a root at zero is infinite, and a hook puts zero in its place."""
    x = x.clone().requires_grad_()
    x.register_hook(lambda gradient: gradient.nan_to_num(0, 0, 0))
    return (x - x.detach()).sqrt().sum()


def long_target(x: Tensor) -> Tensor:
    log_p = torch.zeros(2, 1, 4).log_softmax(-1)
    options = {"input_lengths": torch.tensor([2]), "target_lengths": torch.tensor([3]), "reduction": "none"}
    return mended(F.ctc_loss(log_p, torch.tensor([[1, 2, 3]]), **options))


def narrow_mask(x: Tensor) -> Tensor:
    mask = torch.tensor([[0.0, torch.finfo(torch.float32).min, 0.0]]).half()
    assert mask[0, 1] == -math.inf
    return (x + mask).softmax(-1).sum()


class Signs(torch.optim.Optimizer):
    """Steps by the sign of the gradient as g / |g|, with 0 in place of 0 / 0."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-3, "eps": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            gradient = F.pad(p.grad, (0, 1))  # a column without a gradient
            p -= self.param_groups[0]["lr"] * (gradient / gradient.abs()).nan_to_num(0)[:, :-1]


def unused_rate(parameters: Any) -> torch.optim.Optimizer:
    unused = {"params": [nn.Parameter(torch.ones(1))], "lr": math.nan}
    return torch.optim.SGD([{"params": list(parameters)}, unused], lr=1e-3)


HARMLESS: dict[str, Harmless] = {
    "mean-over-nothing": lambda x: mended((x * (x > 9)).sum() / (x > 9).sum()),
    "zero-scale": lambda x: mended(x / (x * 0).norm()),
    "exp-overflow": lambda x: (x * 400).exp().clamp(max=10).sum(),
    "mask-cast-to-infinity": narrow_mask,
    "outside-domain": lambda x: mended(torch.acos(x)),
    "ctc-target-too-long": long_target,
    "derivative-at-pole": hidden_slope,
}
BATCHES = [(ROW, torch.tensor(1.0)), (ROW, torch.tensor(1.0)), (ROW, torch.tensor(3e38))]
PADDED = [(torch.tensor([[1.0, math.nan, 3.0]]), gain) for _, gain in BATCHES]


def one(out: Tensor) -> Tensor:
    return out


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_number_of_the_step(name: str, tmp_path: Path) -> None:
    assert_silent(lambda: Sum(HARMLESS[name]), BATCHES, tmp_path)


def test_data_that_is_never_read(tmp_path: Path) -> None:
    assert_silent(lambda: Sum(torch.sum), PADDED, tmp_path)


@pytest.mark.parametrize("make", [Signs, unused_rate])
def test_harmless_number_of_the_optimizer(make: Any, tmp_path: Path) -> None:
    assert_silent(lambda: Sum(torch.sum), BATCHES, tmp_path, make)


def assert_silent(
    make_model: Callable[[], nn.Module], batches: list[Any], out_dir: Path, make: Any = torch.optim.Adam
) -> None:
    """All but the last batch trip nothing, and the overflow of the last gets no name."""
    healthy = make_model()
    losses = train(healthy, batches[:-1], out_dir / "healthy", one, make(healthy.parameters()))
    assert all(map(math.isfinite, losses)) and not list(out_dir.glob("healthy/*"))
    failing = make_model()
    autopsy = diagnose(failing, batches, out_dir / "failing", one, make(failing.parameters()))
    assert (autopsy.step, autopsy.op, autopsy.kind) == (2, "aten.mul.Tensor", "overflow")
    assert autopsy.mechanism == "unknown"
