"""bitsandbytes' optimizers on a GPU: the watch changes no bit, and sees what their guards hide."""

from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_loop import diagnose, train
from torch import Tensor, nn

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.cuda
NAMES = ["AdamW8bit", "PagedAdamW8bit", "PagedAdamW32bit"]
LARGE = 100.0
WIDTH = 512
"""Squared beyond the sizes up to which bitsandbytes keeps 32-bit states (4,096) and pages nothing (100,000)."""


def optimizer(name: str) -> Any:
    return lambda parameters: getattr(bitsandbytes.optim, name)(parameters, lr=1e-3)


class Net(nn.Module):
    """Two layers; a batch that begins with a large number has an infinite gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return (out - out.detach()).sqrt() if float(x[0, 0]) > LARGE else out


def batches(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, WIDTH, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", NAMES)
def test_watched_run_equals_an_unwatched_one(name: str, device: str, tmp_path: Path) -> None:
    watched = train(device, Net(), batches(6), tmp_path, make=optimizer(name))
    plain = train(device, Net(), batches(6), None, make=optimizer(name))
    assert list(tmp_path.iterdir()) == []
    assert all(map(torch.equal, watched.parameters(), plain.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_that_the_optimizer_would_skip(name: str, device: str, tmp_path: Path) -> None:
    data = batches(6)
    data[2][0, 0] = 2 * LARGE
    autopsy = diagnose(device, Net(), data, tmp_path, torch.sum, make=optimizer(name))
    assert (autopsy.step, autopsy.clock, autopsy.phase) == (2, "gradient", "backward")


def test_eight_bits_skip_nonfinite_gradients_in_silence(gpu: str) -> None:
    """Why the watch looks at gradients: after this step parameters and state are finite."""
    layer = nn.Linear(WIDTH, WIDTH, bias=False).to(gpu)
    before = layer.weight.detach().clone()
    adam = optimizer("AdamW8bit")(layer.parameters())
    layer.weight.grad = torch.full_like(layer.weight, torch.nan)
    adam.step()
    assert layer.weight.isfinite().all() and torch.equal(layer.weight, before)
