"""Rebuilds GRIST's bugs that divide by a scale of zero or take the root of a probability of zero."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import digits, mlp, train
from torch import Tensor, nn

LOG0 = origin("forward", "divide_by_zero", "log")


@case(
    "ID_5",
    "sqrt(softmax)",
    (4, "gradient"),
    origin("backward", "divide_by_zero invalid", "div", "loss", node="SqrtBackward*"),
    mechanism="derivative-at-pole",
)
def rank_loss_sqrt() -> Loop:
    """MatchZoo's ranking loss over one positive and two negatives, with the root of the softmax (a Bhattacharyya
    coefficient): a candidate's probability is 0, and the slope of its root 0 / 0 or 1 / 0.
    """

    class RankLoss(nn.Module):
        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            root = torch.sqrt(F.softmax(logits, dim=-1))  # DEFECT
            return -torch.mean(torch.sum(labels * root, dim=-1))

    class Ranker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.loss = mlp(10, 12, 1), RankLoss()

        def forward(self, candidates: Tensor, labels: Tensor) -> Tensor:
            return self.loss(self.score(candidates).squeeze(-1), labels)

    torch.manual_seed(45)
    model = Ranker()
    batches = [(torch.randn(8, 3, 10), F.one_hot(torch.zeros(8).long(), 3).float()) for _ in range(7)]
    batches[4][0][1] *= 3000.0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "ID_28a",
    "division by a sum of weights",
    (4, "loss"),
    origin("forward", "invalid", "div", "layers.1"),
    mechanism="zero-scale",
)
def scaled_matmul_pruned_column() -> Loop:
    """Stochastic computing divides a product by the sum of |weights| of each column; pruning after step 3 empties a
    column of the second layer: 0 / 0.
    """

    class ScaledLinear(nn.Module):
        def __init__(self, before: int, behind: int) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(before, behind) * 0.3), nn.Parameter(torch.zeros(behind))

        def forward(self, x: Tensor) -> Tensor:
            scale = self.weight.abs().sum(0)
            z = (x @ self.weight) / scale  # DEFECT
            return (4 * z + self.bias).clamp(-1, 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(ScaledLinear(64, 16), ScaledLinear(16, 12), nn.Linear(12, 10))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.layers(x), y)

    torch.manual_seed(46)
    model = Net()

    def prune(step: int) -> None:
        if step == 3:
            with torch.no_grad():
                model.layers[1].weight[:, 5] = 0

    batches = [digits(16, seed) for seed in range(8)]
    return train(model, torch.optim.SGD(model.parameters(), lr=0.05), model, batches, prune)


@case("ID_28b", "division by a gain", (5, "loss"), origin("forward", "divide_by_zero", "div"))
def upscaling_gain_of_zero() -> Loop:
    """The scale behind a layer is divided by a learned gain that is kept positive by a ReLU: it dies."""
    torch.manual_seed(47)
    body, out = nn.Linear(36, 8), nn.Linear(8, 4)
    gain = nn.Parameter(torch.full((8,), 0.5))
    model = nn.ParameterDict({"gain": gain, "w": body.weight, "b": body.bias, "o": out.weight, "p": out.bias})

    def loss(x: Tensor, y: Tensor) -> Tensor:
        g = F.relu(gain)
        scale = body.weight.abs().sum(1) / g  # DEFECT
        logits = out(torch.tanh(body(x)) * scale * 0.1)
        return F.cross_entropy(logits, y) + 2.0 * g.sum()

    batches = [digits(16, seed, pixels=36, classes=4) for seed in range(5)]
    return train(model, torch.optim.SGD(model.parameters(), lr=0.052), loss, batches)


@case(
    "ID_28c",
    "division by an input's scale",
    (4, "gradient"),
    origin("backward", "invalid", "div", "add", node="DivBackward*"),
    origin("forward", "divide_by_zero", "div", "add"),
    mechanism="zero-scale",
)
def bias_scaled_and_saturated() -> Loop:
    """A bias is divided by the scale of its layer, which is 0 for a blank image: inf, saturated to 1 at once, so the
    loss is finite; the bias's gradient is 0 / 0.
    """

    class ScaledAdd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.full((10,), 0.02))

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            scaled = self.bias / scale  # DEFECT
            return (0.5 * (x + scaled)).clamp(-1, 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.add, self.out = nn.Linear(64, 10, bias=False), ScaledAdd(), nn.Linear(10, 10)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.out(self.add(self.linear(x), x.amax(1, keepdim=True))), y)

    torch.manual_seed(48)
    model = Net()
    batches = [digits(12, seed) for seed in range(7)]
    batches[4][0][9] = 0.0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-2), model, batches)


@case(
    "ID_28d",
    "division by a maximum",
    (5, "loss"),
    origin("forward", "invalid", "div", "rescale"),
    mechanism="zero-scale",
)
def rescaling_by_a_dead_maximum() -> Loop:
    """Activations are brought to a common scale by their maximum over the batch; after a large negative step every
    ReLU of the layer is dead and the maximum 0.
    """

    class Rescale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x.max()  # DEFECT

    torch.manual_seed(49)
    model = nn.Sequential()
    for name, module in (
        ("first", nn.Linear(36, 8)),
        ("relu", nn.ReLU()),
        ("rescale", Rescale()),
        ("out", nn.Linear(8, 4)),
    ):
        model.add_module(name, module)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y) + 5.0 * model.first.bias.sum()

    def loud(step: int) -> None:
        if step == 3:
            optimizer.param_groups[0]["lr"] = 20.0

    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    batches = [digits(16, seed, pixels=36, classes=4) for seed in range(9)]
    return train(model, optimizer, loss, batches, loud)
