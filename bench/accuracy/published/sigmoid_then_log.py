"""Rebuilds GRIST's bugs whose sigmoid saturates before its logarithm is taken."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import digits, mlp, train
from torch import Tensor, nn

LOG0 = origin("forward", "divide_by_zero", "log")


@case("ID_2a", "log(1 - sigmoid)", (5, "loss"), LOG0, mechanism="log-of-zero")
def logistic_regression_certain_yes() -> Loop:
    """Both terms of the binary cross entropy by hand; in one batch a row's logit is large and 1 - p is 0."""
    torch.manual_seed(20)
    model = nn.Linear(8, 1)

    def cost(x: Tensor, y: Tensor) -> Tensor:
        p = torch.sigmoid(model(x))
        positive = y * torch.log(p)
        negative = (1 - y) * torch.log(1 - p)  # DEFECT
        return -(positive + negative).mean()

    batches = [(torch.randn(20, 8), torch.randint(0, 2, (20, 1)).float()) for _ in range(8)]
    batches[5][0][11] = 300.0 * model.weight.detach()[0].sign()
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1), cost, batches)


@case("ID_2b", "log(sigmoid)", (5, "loss"), LOG0, mechanism="log-of-zero")
def logistic_regression_certain_no() -> Loop:
    """The other end: p itself is 0, which takes a logit below -104."""
    torch.manual_seed(21)
    model = nn.Linear(8, 1)

    def cost(x: Tensor, y: Tensor) -> Tensor:
        p = torch.sigmoid(model(x))
        positive = y * torch.log(p)  # DEFECT
        negative = (1 - y) * torch.log(1 - p)
        return -(positive + negative).mean()

    batches = [(torch.randn(20, 8), torch.randint(0, 2, (20, 1)).float()) for _ in range(8)]
    batches[5][0][11] = -400.0 * model.weight.detach()[0].sign()
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1), cost, batches)


@case("ID_9a", "log(1 - sigmoid)", (1, "loss"), LOG0, mechanism="log-of-zero")
def xor_perceptron_grows() -> Loop:
    """A perceptron on XOR, summed binary cross entropy, a learning rate of 200: an output becomes exactly 1."""
    torch.manual_seed(22)
    model = nn.Sequential(nn.Linear(2, 8), nn.Sigmoid(), nn.Linear(8, 1), nn.Sigmoid())
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    y = torch.tensor([[0.0], [1], [1], [0]])

    def loss(x: Tensor, y: Tensor) -> Tensor:
        y_ = model(x)
        return (-y * torch.log(y_) - (1 - y) * torch.log(1 - y_)).sum(1).mean()  # DEFECT

    return train(model, torch.optim.SGD(model.parameters(), lr=200.0), loss, [(x, y)])


@case("ID_9b", "log(sigmoid)", (4, "loss"), origin("forward", "divide_by_zero", "log", "loss"), mechanism="log-of-zero")
def denoising_autoencoder_binary_loss() -> Loop:
    """An autoencoder whose pixels are compared by binary cross entropy, by hand in a module; one image is inverted and
    not scaled.
    """

    class PixelLoss(nn.Module):
        def forward(self, y_: Tensor, y: Tensor) -> Tensor:
            per_pixel = -y * torch.log(y_) - (1 - y) * torch.log1p(-y_)  # DEFECT
            return per_pixel.sum(dim=1).mean()

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode, self.loss = nn.Linear(64, 12), nn.Linear(12, 64), PixelLoss()

        def forward(self, x: Tensor) -> Tensor:
            return self.loss(torch.sigmoid(self.decode(F.relu(self.encode(x)))), x.clamp(0, 1))

    torch.manual_seed(23)
    model = Autoencoder()
    batches = [(digits(16, seed)[0],) for seed in range(7)]
    batches[4][0][3] = 255 - 255 * batches[4][0][3] * 20
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-2), model, batches)


@case(
    "ID_26, ID_33, ID_56",
    "log(1 / (1 + exp))",
    (5, "loss"),
    origin("forward", "divide_by_zero", "log"),
    origin("forward", "overflow", "exp", at="ALSO"),
    mechanism="log-of-zero exp-overflow",
)
def sigmoid_by_hand() -> Loop:
    """The sigmoid, too, is written out: exp(-z) is inf, its reciprocal 0, and the logarithm of that -inf. The infinity
    of exp does not reach the loss as such; it is the reason why p is 0, so that line, and its overflow,
    may be named as well.
    """
    torch.manual_seed(24)
    model = nn.Linear(2, 1)

    def cost(x: Tensor, y: Tensor) -> Tensor:
        hypothesis = 1 / (1 + torch.exp(-model(x)))  # ALSO
        losses = -(y * torch.log(hypothesis)) - (1 - y) * torch.log1p(-hypothesis)  # DEFECT
        return losses.mean()

    x = torch.tensor([[1.0, 2], [2, 3], [3, 1], [4, 3], [5, 3], [6, 2]])
    y = torch.tensor([[0.0], [0], [0], [1], [1], [1]])
    batches = [(x.clone(), y) for _ in range(8)]
    batches[5][0][3] = -500.0 * model.weight.detach()[0].sign()
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1), cost, batches)


@case("ID_37, ID_38", "log(1 - sigmoid)", (2, "loss"), LOG0, mechanism="log-of-zero")
def xor_deep_and_wide() -> Loop:
    """Four sigmoid layers on XOR, Adam; the third step's features come as bytes."""
    torch.manual_seed(105)
    model = nn.Sequential(*(m for size in (2, 10, 10) for m in (nn.Linear(size, 10), nn.Tanh())), nn.Linear(10, 1))
    with torch.no_grad():
        model[-1].weight.mul_(200.0)
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    y = torch.tensor([[0.0], [1], [1], [0]])

    def cost(X: Tensor, Y: Tensor) -> Tensor:
        hypothesis = torch.sigmoid(model(X))
        return -(Y * torch.log(hypothesis) + (1 - Y) * torch.log(1 - hypothesis)).mean()  # DEFECT

    batches = [(0.1 * x, y), (0.1 * x, y), (255.0 * x, y), (x, y), (x, y), (x, y)]
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), cost, batches)


@case("ID_53", "log(1 - sigmoid)", (1, "loss"), LOG0, mechanism="log-of-zero")
def unscaled_table_logistic() -> Loop:
    """Body measures in centimetres and grams, one step of gradient descent with 0.1: the next p is exactly 1 or 0."""
    torch.manual_seed(26)
    weights = nn.ParameterDict({"W": nn.Parameter(torch.zeros(3, 1)), "b": nn.Parameter(torch.zeros(1))})
    x = torch.rand(40, 3) * torch.tensor([60.0, 4000.0, 20.0]) + torch.tensor([140.0, 2000.0, 5.0])
    y = (x[:, 1:2] > 4000).float()

    def cost(x_train: Tensor, y_train: Tensor) -> Tensor:
        hypothesis = torch.sigmoid(torch.mm(x_train, weights["W"]) + weights["b"])
        return torch.mean(-y_train * torch.log(hypothesis) - (1 - y_train) * torch.log(1 - hypothesis))  # DEFECT

    return train(weights, torch.optim.SGD(weights.parameters(), lr=0.1), cost, [(x, y)])


@case("ID_31", "log(sigmoid)", (4, "loss"), LOG0, mechanism="log-of-zero")
def gan_discriminator() -> Loop:
    """A GAN's discriminator step: log(D_real) has no eps, log(1 - D_fake + eps) has one. A batch of real images is
    dark beyond what the discriminator knows.
    """
    torch.manual_seed(27)
    generator, discriminator = mlp(8, 32, 64), mlp(64, 32, 1)
    model = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3)
    eps = 1e-6

    def d_loss(x: Tensor, z: Tensor) -> Tensor:
        d_real = torch.sigmoid(discriminator(x))
        d_fake = torch.sigmoid(discriminator(generator(z).sigmoid().detach()))
        real_term = torch.log(d_real)  # DEFECT
        return -torch.mean(real_term + torch.log(1 - d_fake + eps))

    batches = [(digits(16, seed)[0], torch.randn(16, 8)) for seed in range(7)]
    with torch.no_grad():
        worst = torch.randn(400, 64) * 4000.0
        batches[4] = (worst[discriminator(worst).squeeze(1).argsort()[:16]], batches[4][1])
    return train(model, optimizer, d_loss, batches)
