"""Rebuilds GRIST's bugs whose softmax underflows before its logarithm is taken: shallow networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import digit_batches, train
from torch import Tensor, nn

LOG0 = origin("forward", "divide_by_zero", "log")


@case("ID_20", "log(softmax)", (5, "loss"), LOG0, mechanism="log-of-zero")
def softmax_regression_raw_pixels() -> Loop:
    """Softmax regression on digits in [0, 1]; the sixth batch was read as 0..255."""
    torch.manual_seed(0)
    model = nn.Linear(64, 10)
    batches = digit_batches(9, 32)
    batches[5] = (batches[5][0] * 255, batches[5][1])

    def cost(x: Tensor, y: Tensor) -> Tensor:
        pred = F.softmax(model(x), dim=1)
        return -(y * torch.log(pred)).sum(1).mean()  # DEFECT

    return train(model, torch.optim.SGD(model.parameters(), lr=0.05), cost, batches)


@case("ID_10", "log(softmax)", (2, "loss"), LOG0, mechanism="log-of-zero")
def softmax_regression_summed_loss() -> Loop:
    """One layer, the loss summed over the batch, gradient descent with 0.2: the logits saturate within a few steps."""
    torch.manual_seed(1)
    model = nn.Linear(100, 10)

    def cross_entropy(x: Tensor, y_: Tensor) -> Tensor:
        y = F.softmax(model(x), dim=1)
        return -torch.sum(y_ * torch.log(y))  # DEFECT

    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    return train(model, optimizer, cross_entropy, digit_batches(8, 50, pixels=100))


@case("ID_6, ID_7, ID_8", "log(softmax)", (11, "loss"), LOG0, mechanism="log-of-zero")
def deep_mnist_convnet() -> Loop:
    """Two convolutions and two dense layers with dropout, cross entropy by hand and summed; a warm-up that doubles
    Adam's learning rate at every step and never ends.
    """

    class ConvNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
            self.fc1, self.drop, self.fc2 = nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10)

        def forward(self, x: Tensor) -> Tensor:
            h = F.max_pool2d(F.relu(self.conv1(x.view(-1, 1, 8, 8))), 2)
            h = F.max_pool2d(F.relu(self.conv2(h)), 2).flatten(1)
            return F.softmax(self.fc2(self.drop(F.relu(self.fc1(h)))), dim=1)

    torch.manual_seed(2)
    model = ConvNet()

    def cross_entropy(x: Tensor, y_: Tensor) -> Tensor:
        y_conv = model(x)
        return -torch.sum(y_ * torch.log(y_conv))  # DEFECT

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def warm_up(step: int) -> None:
        optimizer.param_groups[0]["lr"] *= 2

    return train(model, optimizer, cross_entropy, digit_batches(10, 40), warm_up)


@case(
    "ID_1",
    "log(softmax)",
    (6, "loss"),
    origin("forward", "divide_by_zero", "log", "criterion"),
    mechanism="log-of-zero",
)
def adversarial_convnet() -> Loop:
    """Training on FGSM examples whose step was meant for 0..255 images; the loss is a module of its own."""

    class CrossEntropy(nn.Module):
        def forward(self, y_pred: Tensor, y: Tensor) -> Tensor:
            return -torch.sum(y * torch.log(y_pred), dim=1).mean()  # DEFECT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten())
            self.head, self.criterion = nn.Sequential(nn.Linear(216, 10), nn.Softmax(dim=1)), CrossEntropy()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.criterion(self.head(self.features(x)), y)

    torch.manual_seed(3)
    model = Net()
    batches = [(x.view(-1, 1, 8, 8), y) for x, y in digit_batches(9, 24)]
    noise = torch.randn(24, 1, 8, 8).sign()
    batches[6] = (batches[6][0] + 400.0 * noise, batches[6][1])
    return train(model, torch.optim.Adam(model.parameters(), lr=5e-3), model, batches)


@case(
    "ID_12",
    "log(softmax)",
    (4, "gradient"),
    origin("backward", "invalid", "div", node="LogBackward*"),
    LOG0,
    mechanism="log-of-zero",
)
def skorch_classifier() -> Loop:
    """The network returns probabilities, the wrapper takes their logarithm for NLLLoss, as skorch does. The label's
    own probability is fine; that of another class is 0, whose -inf NLLLoss never reads, but its gradient is 0 / 0.
    """
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4), nn.Softmax(dim=-1))

    def get_loss(x: Tensor, y: Tensor) -> Tensor:
        y_pred = net(x)
        return F.nll_loss(torch.log(y_pred), y)  # DEFECT

    batches = []
    for _ in range(8):
        y = torch.randint(0, 4, (16,))
        batches.append([torch.randn(16, 20) + 2.0 * F.one_hot(y, 20), y])
    with torch.no_grad():
        batches[4][0] = batches[4][0] * 400.0
        batches[4][1] = net(batches[4][0]).argmax(1)
    return train(net, torch.optim.SGD(net.parameters(), lr=0.01), get_loss, batches)


@case("ID_14", "log(softmax)", (5, "loss"), origin("forward", "divide_by_zero", "log", "loss"), mechanism="log-of-zero")
def deep_convnet_batchnorm_off() -> Loop:
    """Six layers with ReLU and weights drawn from a unit normal, as in TensorFlow 1: a bright batch saturates it."""

    class Loss(nn.Module):
        def forward(self, y: Tensor, labels: Tensor) -> Tensor:
            picked = labels * y.log()  # DEFECT
            return -picked.sum(dim=1).mean()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv3 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.h6, self.h7, self.loss = nn.Linear(64, 32), nn.Linear(32, 10), Loss()

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            x = F.relu(self.conv1(x))
            x = F.max_pool2d(F.relu(self.conv3(x)), 2)
            return self.loss(self.h7(F.relu(self.h6(x.flatten(1)))).softmax(dim=1), labels)

    torch.manual_seed(5)
    model = Net()
    with torch.no_grad():
        for layer in (model.h6, model.h7):
            layer.weight.normal_(0, 0.25)
    batches = [(0.2 * x.view(-1, 1, 8, 8), y) for x, y in digit_batches(8, 16)]
    batches[5] = (batches[5][0] * 900.0, batches[5][1])
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)
