"""A steadily growing gradient gives a warning before the run fails; jumps and flat gradients do not."""

import logging
from pathlib import Path

import pytest
import torch
from bare_loop import train
from torch import Tensor, nn

from nangrid import NonFiniteError
from nangrid.watch.growth import WINDOW, Growth


class Bowl(nn.Module):
    """Descent on it diverges by a constant factor per step once the learning rate exceeds 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def test_diverging_descent_warns_before_it_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Bowl()
    optimizer = torch.optim.SGD(model.parameters(), lr=8.0)
    with caplog.at_level(logging.WARNING, "nangrid.watch.growth"), pytest.raises(NonFiniteError) as raised:
        train(model, [torch.ones(4)] * 200, tmp_path, optimizer=optimizer)
    assert raised.value.autopsy is not None
    (said,) = [record.getMessage() for record in caplog.records if "has grown" in record.message]
    step, ahead = int(said.split()[1].rstrip(":")), int(said.split()[-2])
    assert step < raised.value.autopsy.step
    assert step + ahead == pytest.approx(raised.value.autopsy.step, abs=2)


@pytest.mark.parametrize(
    "gradients",
    [
        [1.0] * 40,
        [1.0, 28.0, 1.6e8, 25.0, 3.0] * 8,  # batches with and without a new token (bf16, zero rows)
        [1.01**step for step in range(40)],  # grows, and its end is out of sight
        [2.0**-step for step in range(40)],
        [2.0**step for step in range(WINDOW - 1)],  # too few to draw a line through
    ],
)
def test_no_warning_without_steady_growth(gradients: list[float]) -> None:
    growth = Growth({torch.float16})
    for step, gradient in enumerate(gradients):
        growth.note(step, gradient)
    assert growth.warnings == []
