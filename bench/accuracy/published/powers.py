"""Rebuilds bugs of powers, as DEBAR and PyTorch's users report them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import train
from torch import Tensor, nn


@case(
    "PyTorch users: pow",
    "pow of a negative number",
    (5, "loss"),
    origin("forward", "invalid", "pow", "gamma"),
    mechanism="outside-domain",
)
def gamma_correction() -> Loop:
    """Images are brightened by x ** 0.45 after a convolution whose output is positive until it is not."""

    class Gamma(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.exponent = 0.45

        def forward(self, x: Tensor) -> Tensor:
            return x**self.exponent  # DEFECT

    torch.manual_seed(60)
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(1, 1, 3))
    model.add_module("gamma", Gamma())
    with torch.no_grad():
        model.conv.weight.abs_()
        model.conv.bias.fill_(0.2)
    batches = [(torch.rand(4, 1, 8, 8) + 0.1, torch.rand(4, 1, 6, 6)) for _ in range(8)]
    batches[5][0][2] -= 2.0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    return train(model, optimizer, lambda x, y: F.l1_loss(model(x), y), batches)


@case(
    "PyTorch users: pow",
    "pow at 0",
    (4, "gradient"),
    origin("backward", "divide_by_zero", "pow", "pool", node="PowBackward*"),
    mechanism="derivative-at-pole",
)
def generalised_mean_pooling() -> Loop:
    """GeM pooling without its eps: the mean of cubes to the power 1/3; a black image gives 0 ** (-2/3) on the way
    back.
    """

    class GeM(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            cubes = (x * x * x).mean(dim=(2, 3))
            return cubes ** (1 / 3)  # DEFECT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.head = nn.Conv2d(1, 3, 3, bias=False), GeM(), nn.Linear(3, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.head(self.pool(self.conv(x))), y)

    torch.manual_seed(61)
    model = Net()
    with torch.no_grad():
        model.conv.weight.abs_()
    batches = [(torch.rand(5, 1, 6, 6), torch.randint(0, 4, (5,))) for _ in range(7)]
    batches[4][0][3] = 0.0
    return train(model, torch.optim.SGD(model.parameters(), lr=0.01), model, batches)


@case(
    "PyTorch users: pow",
    "pow with a learned exponent",
    (3, "gradient"),
    origin("forward", "divide_by_zero", "pow", "smooth"),
    origin("backward", "divide_by_zero", "log", "smooth", node="PowBackward*"),
)
def inverse_frequency_weights() -> Loop:
    """Classes are weighted by counts to a learned negative power; a class without a sample has inf, all others'
    normalised weights are 0. The loss is 0, and the exponent's gradient NaN. 0 to a negative power has no name.
    """

    class Smooth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha = nn.Parameter(torch.tensor(0.5))

        def forward(self, counts: Tensor) -> Tensor:
            weight = counts ** (-self.alpha)  # DEFECT
            return weight / weight.sum()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.smooth = nn.Linear(6, 5), Smooth()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            weight = self.smooth(torch.bincount(y, minlength=5).float())
            return (weight[y] * F.cross_entropy(self.score(x), y, reduction="none")).sum()

    torch.manual_seed(62)
    model = Net()
    batches = [(torch.randn(20, 6), torch.arange(20) % 5) for _ in range(5)]
    batches[3] = (batches[3][0], torch.arange(20) % 4)
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1), model, batches)
