"""Rebuilds bugs of masks, data, precision and training, as AUTOTRAINER, DeepLocalize and UMLAUT list them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import mlp, train
from torch import Tensor, nn

LOG0 = origin("forward", "divide_by_zero", "log")


@case(
    "PyTorch users: masked softmax",
    "softmax of a masked row",
    (4, "loss"),
    origin("forward", "invalid", "_softmax softmax", "encoder.attention", node="SoftmaxBackward*", first_nan=True),
    mechanism="masked-row-softmax",
)
def attention_over_an_empty_sentence() -> Loop:
    """Attention with a padding mask of -inf; one sentence of the fifth batch is empty, all of its keys are masked."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)

        def forward(self, x: Tensor, padded: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            scores = (q @ k.transpose(1, 2)) / 8**0.5
            scores = scores.masked_fill(padded.unsqueeze(1), float("-inf"))
            return F.softmax(scores, dim=-1) @ v  # DEFECT

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.norm = Attention(), nn.LayerNorm(8)

        def forward(self, x: Tensor, padded: Tensor) -> Tensor:
            return self.norm(x + self.attention(x, padded))

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.encoder, self.out = nn.Embedding(30, 8, padding_idx=0), Encoder(), nn.Linear(8, 2)

        def forward(self, ids: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.out(self.encoder(self.words(ids), ids == 0).mean(1)), y)

    torch.manual_seed(78)
    model = Classifier()
    batches = [(torch.randint(1, 30, (5, 6)), torch.randint(0, 2, (5,))) for _ in range(7)]
    for ids, _ in batches:
        ids[:, 4:] = 0
    batches[4][0][2] = 0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "PyTorch users: masked softmax",
    "exp / sum under a mask",
    (5, "loss"),
    origin("forward", "invalid", "div", "pointer"),
    mechanism="masked-row-softmax zero-scale",
)
def pointer_network_all_visited() -> Loop:
    """A pointer network's masked softmax by hand, exp(s) * mask over its sum: every city was visited, 0 / 0.

    It is a softmax over a row that is masked everywhere, and it is weights divided by their sum: both names fit.
    """

    class Pointer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(4, 1)

        def forward(self, cities: Tensor, open_: Tensor) -> Tensor:
            weight = torch.exp(torch.tanh(self.score(cities)).squeeze(-1)) * open_
            return weight / weight.sum(-1, keepdim=True)  # DEFECT

    class Tour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pointer = Pointer()

        def forward(self, cities: Tensor, open_: Tensor, next_: Tensor) -> Tensor:
            p = self.pointer(cities, open_).gather(1, next_)
            return -(p + 1e-3).log().mean()

    torch.manual_seed(79)
    model = Tour()
    batches = [(torch.randn(6, 7, 4), (torch.rand(6, 7) < 0.8).float(), torch.randint(0, 7, (6, 1))) for _ in range(8)]
    for _, open_, _ in batches:
        open_[:, 0] = 1
    batches[5][1][4] = 0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-2), model, batches)


@case(
    "AUTOTRAINER: exploding gradient",
    "divergence",
    (13, "loss"),
    origin("forward", "overflow", "mse_loss", node="MseLossBackward*"),
    mechanism="divergence",
)
def regression_learning_rate_too_high() -> Loop:
    """Linear regression with features in the hundreds: each step multiplies the error, until its square overflows."""
    torch.manual_seed(80)
    model = nn.Linear(3, 1)
    x = torch.randn(40, 3) * torch.tensor([1.0, 10.0, 300.0])
    y = x @ torch.tensor([[1.0], [2.0], [0.5]])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)  # DEFECT

    return train(model, optimizer, loss, [(x, y)])


@case(
    "DeepLocalize: unscaled data",
    "divergence",
    (2, "loss"),
    origin("forward", "overflow", "pow", "loss"),
    mechanism="divergence",
)
def house_prices() -> Loop:
    """House prices in full, areas in square feet, a summed loss in a module of its own and two layers: gone in few
    steps.
    """

    class SquaredError(nn.Module):
        def forward(self, guess: Tensor, price: Tensor) -> Tensor:
            return ((guess - price) ** 2).sum()  # DEFECT

    class Regressor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.loss = mlp(2, 16, 1, act=nn.LeakyReLU), SquaredError()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.loss(self.body(x), y)

    torch.manual_seed(81)
    model = Regressor()
    x = torch.rand(30, 2) * torch.tensor([3000.0, 5.0])
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-6), model, [(x, 150 * x[:, :1])])


@case(
    "AUTOTRAINER: exploding gradient",
    "gradient of a recurrence",
    (5, "gradient"),
    origin("backward", "overflow", "mul mm addmm", "cell", node="*"),
)
def recurrence_explodes_backward() -> Loop:
    """A gated recurrence over 60 steps whose state saturates: the forward pass is bounded, the gradient through 60
    factors of up to 40 is not. The script sets that gain itself, so training did not diverge.
    """

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.full((6,), 1.5))

        def forward(self, state: Tensor, x: Tensor) -> Tensor:
            return torch.sin(state * self.gain + x)  # DEFECT

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = Cell(), nn.Linear(6, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            state = torch.zeros(x.shape[0], 6)
            for t in range(x.shape[1]):
                state = self.cell(state, x[:, t])
            return F.mse_loss(self.out(state), y)

    torch.manual_seed(82)
    model = Recurrent()

    def wake(step: int) -> None:
        if step == 4:
            with torch.no_grad():
                model.cell.gain.fill_(60.0)

    batches = [(0.1 * torch.randn(5, 60, 6), torch.randn(5, 1)) for _ in range(8)]
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-4), model, batches, wake)


@case(
    "UMLAUT: input not finite",
    "bad data",
    (4, "loss"),
    origin("input", "nonfinite_input", "addmm mm linear", "net.0", node="*"),
    mechanism="nonfinite-data",
)
def missing_value_in_a_table() -> Loop:
    """A table with a missing value, NaN, in the fifth batch: the first layer reads it."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(6, 12, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # DEFECT

    torch.manual_seed(83)
    model = Model()
    batches = [(torch.randn(10, 6), torch.randn(10, 1)) for _ in range(7)]
    batches[4][0][3, 2] = float("nan")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return train(model, optimizer, lambda x, y: F.mse_loss(model(x), y), batches)


@case(
    "ASE 2022 study: improper data",
    "bad data",
    (5, "loss"),
    origin("input", "nonfinite_input", "addmm mm linear", "body", node="*"),
    mechanism="nonfinite-data",
)
def log_scaled_counts() -> Loop:
    """Features are logarithms of counts, made before training; one of the sixth batch is 0, its logarithm -inf."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(5, 12), nn.Linear(12, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.body(x)  # DEFECT
            return self.head(F.relu(h))

    torch.manual_seed(86)
    model = Net()
    counts = torch.randint(1, 300, (8, 10, 5)).float()
    counts[5, 3, 1] = 0
    batches = list(zip(counts.log(), torch.randn(8, 10, 1), strict=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return train(model, optimizer, lambda x, y: F.mse_loss(model(x), y), batches)


@case(
    "PyTorch users: half precision",
    "float16 overflow",
    (3, "loss"),
    origin("forward", "overflow", "mul pow", "energy", node="*"),
    mechanism="fp16-activation-overflow",
)
def half_precision_square() -> Loop:
    """A model in bfloat16 whose energy term is computed in float16: a square above 65504."""

    class Energy(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return (h.half() * h.half()).float().mean()  # DEFECT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.energy, self.out = nn.Linear(6, 12), Energy(), nn.Linear(12, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            h = self.net(x)
            return F.cross_entropy(self.out(h), y) + 1e-3 * self.energy(h)

    torch.manual_seed(84)
    model = Net()
    batches = [(torch.randn(8, 6), torch.randint(0, 3, (8,))) for _ in range(6)]
    batches[3][0][5] *= 2000.0
    return train(model, torch.optim.SGD(model.parameters(), lr=0.01), model, batches)


@case(
    "PyTorch users: Adam without eps",
    "0 / 0 in the optimizer",
    (0, "parameter"),
    origin("optimizer", "invalid", "addcdiv _foreach_addcdiv div _foreach_div", node="*", at="adam.py:*"),
    mechanism="optimizer-eps-underflow",
)
def adam_eps_zero() -> Loop:
    """Adam with eps=0: a ReLU unit that is dead from the start has no gradient, and its update is 0 / 0."""
    torch.manual_seed(85)
    model = mlp(6, 8, 1)
    with torch.no_grad():
        model[0].bias[3] = -1e3
    batches = [(torch.randn(10, 6), torch.randn(10, 1)) for _ in range(4)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=0.0)
    return train(model, optimizer, lambda x, y: F.mse_loss(model(x), y), batches)
