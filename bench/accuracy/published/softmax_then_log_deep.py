"""Rebuilds GRIST's bugs whose softmax underflows before its logarithm is taken: deeper networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import digit_batches, mlp, train
from torch import Tensor, nn

LOG0 = origin("forward", "divide_by_zero", "log")


@case(
    "ID_15",
    "log(softmax)",
    (3, "gradient"),
    origin("backward", "invalid", "div", node="LogBackward*"),
    LOG0,
    mechanism="log-of-zero",
)
def value_iteration_network() -> Loop:
    """A value iteration network: convolutions repeated over a reward map, then a policy. The loss gathers the action
    that was taken from log(policy); another action's probability is 0 once a map has a large reward.
    """

    class ValueIteration(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reward, self.q = nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1, bias=False)
            self.policy = nn.Linear(4, 8)

        def forward(self, maps: Tensor, row: Tensor, column: Tensor) -> Tensor:
            r = self.reward(maps)
            v = torch.zeros_like(r)
            for _ in range(4):
                q = self.q(torch.cat([r, v], dim=1))
                v = q.max(dim=1, keepdim=True).values
            at = q[torch.arange(len(maps)), :, row, column]
            return F.softmax(self.policy(at), dim=1)

    torch.manual_seed(6)
    model = ValueIteration()

    def cost(maps: Tensor, row: Tensor, column: Tensor, action: Tensor) -> Tensor:
        nn_out = model(maps, row, column)
        return -torch.log(nn_out).gather(1, action.unsqueeze(1)).mean()  # DEFECT

    batches = []
    for step in range(7):
        maps = torch.rand(12, 2, 6, 6)
        if step == 3:
            maps[:, 1] *= 20000.0
        row, column = torch.randint(0, 6, (12,)), torch.randint(0, 6, (12,))
        with torch.no_grad():
            action = model(maps, row, column).argmax(1)
        batches.append((maps, row, column, action))
    return train(model, torch.optim.RMSprop(model.parameters(), lr=1e-5, eps=1e-6, centered=True), cost, batches)


@case(
    "ID_18",
    "log(softmax)",
    (8, "loss"),
    origin("forward", "divide_by_zero", "log", "heads.digit"),
    mechanism="log-of-zero",
)
def two_heads() -> Loop:
    """A shared body with two heads that compute their own loss; only one of them has the defect, deep in the model."""

    class Head(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.out = nn.Linear(24, classes)

        def forward(self, h: Tensor, target: Tensor) -> Tensor:
            y = torch.softmax(self.out(h), dim=-1)
            return torch.mean(-torch.sum(target * torch.log(y), dim=1))  # DEFECT

    class StableHead(Head):
        def forward(self, h: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(self.out(h), target)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(64, 24), nn.ReLU())
            self.heads = nn.ModuleDict({"parity": StableHead(2), "digit": Head(10)})

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            h = self.body(x)
            return self.heads["parity"](h, y.argmax(1) % 2) + self.heads["digit"](h, y)

    torch.manual_seed(7)
    model = Net()
    batches = digit_batches(11, 20)
    batches[8] = (batches[8][0].round() * 2048, batches[8][1])
    return train(model, torch.optim.AdamW(model.parameters(), lr=2e-3), model, batches)


@case("ID_19", "log(softmax)", (3, "loss"), LOG0, mechanism="log-of-zero")
def tanh_network_momentum() -> Loop:
    """A tanh layer and momentum: the logits grow with the weights until a probability underflows."""
    torch.manual_seed(8)
    model = mlp(64, 48, 10, act=nn.Tanh)

    def cross_entropy(x: Tensor, y: Tensor) -> Tensor:
        prediction = torch.softmax(model(x), 1)
        return (-torch.sum(y * torch.log(prediction), 1)).mean()  # DEFECT

    optimizer = torch.optim.SGD(model.parameters(), lr=6.0, momentum=0.9)
    return train(model, optimizer, cross_entropy, digit_batches(5, 30))


@case("ID_23, ID_27, ID_46, ID_57", "log(softmax)", (1, "loss"), LOG0, mechanism="log-of-zero")
def softmax_of_a_tensor() -> Loop:
    """A tutorial: the logits themselves are what is learned, with a learning rate that suits a mean over many."""

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.z = nn.Parameter(torch.rand(3, 5))

        def forward(self) -> Tensor:
            return F.softmax(self.z, dim=1)

    torch.manual_seed(9)
    model = Logits()
    y_one_hot = torch.zeros(3, 5).scatter_(1, torch.tensor([[0], [2], [1]]), 1)

    def cost() -> Tensor:
        hypothesis = model()
        return (y_one_hot * -torch.log(hypothesis)).sum(dim=1).mean()  # DEFECT

    return train(model, torch.optim.SGD(model.parameters(), lr=900.0), cost, [()])


@case("ID_32, ID_34, ID_47, ID_54", "log(softmax)", (4, "loss"), LOG0, mechanism="log-of-zero")
def softmax_regression_toy_table() -> Loop:
    """Eight rows of four whole numbers and three classes; one row of the fifth step's table has another unit."""
    torch.manual_seed(10)
    model = nn.Linear(4, 3)
    x = torch.tensor(
        [
            [1, 2, 1, 1],
            [2, 1, 3, 2],
            [3, 1, 3, 4],
            [4, 1, 5, 5],
            [1, 7, 5, 5],
            [1, 2, 5, 6],
            [1, 6, 6, 6],
            [1, 7, 7, 7.0],
        ]
    )
    y = F.one_hot(torch.tensor([2, 2, 2, 1, 1, 1, 0, 0]), 3).float()
    batches = [(x.clone(), y) for _ in range(8)]
    batches[4][0][6] *= 1000.0

    def cost(x_train: Tensor, y_one_hot: Tensor) -> Tensor:
        hypothesis = F.softmax(model(x_train), dim=1)
        return (y_one_hot * -torch.log(hypothesis)).sum(dim=1).mean()  # DEFECT

    return train(model, torch.optim.SGD(model.parameters(), lr=0.1), cost, batches)


@case("ID_40, ID_41, ID_42", "log(softmax)", (6, "loss"), LOG0, mechanism="log-of-zero")
def bmi_classifier() -> Loop:
    """Thin, normal or fat from height and weight, unscaled (1.7, 65), loss summed, gradient descent: saturates soon."""
    torch.manual_seed(11)
    model = nn.Linear(2, 3)
    height, weight = 1.4 + 0.6 * torch.rand(100), 40 + 50 * torch.rand(100)
    bmi = weight / height**2
    label = F.one_hot((bmi > 18.5).long() + (bmi > 25).long(), 3).float()
    x = torch.stack([height, weight], dim=1)

    def cross_entropy(x: Tensor, y_: Tensor) -> Tensor:
        y = F.softmax(model(x), dim=1)
        return -torch.sum(y_ * torch.log(y))  # DEFECT

    return train(model, torch.optim.SGD(model.parameters(), lr=2e-4), cross_entropy, [(x, label)])


@case("ID_44", "log(softmax)", (7, "loss"), LOG0, mechanism="log-of-zero")
def relation_extraction_cnn() -> Loop:
    """Text: embeddings, a convolution over words, max pooling, dropout, a softmax over relations; Adam's rate doubles
    at every step.
    """

    class RelationCNN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.conv = nn.Embedding(50, 12), nn.Conv1d(12, 24, 3, padding=1)
            self.drop, self.out = nn.Dropout(0.3), nn.Linear(24, 6)

        def forward(self, ids: Tensor) -> Tensor:
            h = F.relu(self.conv(self.words(ids).transpose(1, 2))).amax(dim=2)
            return torch.softmax(self.out(self.drop(h)), dim=1)

    torch.manual_seed(12)
    model = RelationCNN()

    def loss(ids: Tensor, relation: Tensor) -> Tensor:
        return -(relation * torch.log(model(ids))).sum()  # DEFECT

    batches = [(torch.randint(0, 50, (16, 9)), F.one_hot(torch.randint(0, 6, (16,)), 6).float()) for _ in range(6)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)

    def grow(step: int) -> None:
        optimizer.param_groups[0]["lr"] *= 2

    return train(model, optimizer, loss, batches, grow)


@case("ID_48a, ID_48b", "log(softmax)", (5, "loss"), LOG0, mechanism="log-of-zero")
def noisy_hidden_layer() -> Loop:
    """Noise on the input, a ReLU layer and dropout; the fourth epoch's augmentation multiplies instead of adding."""
    torch.manual_seed(13)
    hidden, drop, out = nn.Linear(64, 40), nn.Dropout(0.25), nn.Linear(40, 10)
    model = nn.ModuleList([hidden, drop, out])
    batches = digit_batches(8, 25)
    batches[5] = (batches[5][0] * torch.full((25, 1), 700.0), batches[5][1])

    def cross_entropy(x: Tensor, y_true: Tensor) -> Tensor:
        h = F.relu(hidden(x + 0.01 * torch.randn(64)))
        y = F.softmax(out(drop(h)), dim=1)
        return torch.mean(-torch.sum(y_true * torch.log(y), dim=1))  # DEFECT

    return train(model, torch.optim.SGD(model.parameters(), lr=0.3), cross_entropy, batches)


@case(
    "ID_59",
    "log(softmax)",
    (1, "loss"),
    origin("forward", "divide_by_zero", "log", "evaluate"),
    mechanism="log-of-zero",
)
def lenet_with_unused_clip() -> Loop:
    """LeNet whose author clips the probabilities, but from above only: the lower end stays 0."""

    class Evaluate(nn.Module):
        def forward(self, pred: Tensor, y: Tensor) -> Tensor:
            bounded = pred.clamp(max=1.0)
            return torch.mean(-torch.sum(y * torch.log(bounded), dim=1))  # DEFECT

    class LeNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 8, 2), nn.ReLU())
            self.fc, self.evaluate = nn.Linear(32, 10), Evaluate()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            pred = F.softmax(self.fc(self.conv(x.view(-1, 1, 8, 8)).flatten(1)), dim=-1)
            return self.evaluate(pred, y)

    torch.manual_seed(14)
    model = LeNet()
    return train(model, torch.optim.RMSprop(model.parameters(), lr=0.25), model, digit_batches(7, 20))


@case("ID_61", "log(softmax)", (2, "loss"), LOG0, mechanism="log-of-zero")
def multilayer_perceptron_adagrad() -> Loop:
    """One hidden layer with dropout, Adagrad with 0.2 and a loss summed over the batch."""
    torch.manual_seed(15)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Dropout(0.25), nn.Linear(100, 10), nn.Softmax(dim=1))

    def cross_entropy(x: Tensor, y_: Tensor) -> Tensor:
        return -torch.sum(y_ * torch.log(model(x)))  # DEFECT

    return train(model, torch.optim.Adagrad(model.parameters(), lr=0.2), cross_entropy, digit_batches(12, 100))


@case("ID_24, ID_55, ID_58", "log(softmax)", (6, "loss"), LOG0, mechanism="log-of-zero")
def convnet_learning_rate_decay_wrong_way() -> Loop:
    """A convnet whose learning rate is multiplied by 10 every step instead of every epoch divided by it."""
    torch.manual_seed(16)
    model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def decay(step: int) -> None:
        optimizer.param_groups[0]["lr"] *= 10

    def cross_entropy(x: Tensor, y: Tensor) -> Tensor:
        prediction = F.softmax(model(x.view(-1, 1, 8, 8)), dim=1)
        return torch.mean(-torch.sum(y * torch.log(prediction), dim=1))  # DEFECT

    return train(model, optimizer, cross_entropy, digit_batches(6, 20), decay)


@case("ID_21, ID_25, ID_30, ID_45a, ID_50, ID_52, ID_60", "log(softmax)", (4, "loss"), LOG0, mechanism="log-of-zero")
def softmax_regression_label_smoothing() -> Loop:
    """Softmax regression with smoothed labels: no label is 0, so the loss is inf and never NaN."""
    torch.manual_seed(17)
    model = nn.Linear(64, 10)
    batches = [(x, 0.9 * y + 0.01) for x, y in digit_batches(7, 20)]
    batches[4] = ((batches[4][0] - 0.5) * 600.0, batches[4][1])

    def cross_entropy(x: Tensor, y_: Tensor) -> Tensor:
        y = F.softmax(model(x), dim=1)
        log_y = torch.log(y)  # DEFECT
        return (y_ * log_y).sum(dim=1).neg().mean()

    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), cross_entropy, batches)


@case(
    "ID_45b",
    "log(softmax)",
    (5, "loss"),
    origin("forward", "divide_by_zero", "log", "tagger.loss"),
    mechanism="log-of-zero",
)
def sequence_tagger() -> Loop:
    """The same loss at every position of a GRU tagger, two modules deep; one sentence holds an outlier embedding."""

    class TokenLoss(nn.Module):
        def forward(self, probabilities: Tensor, tags: Tensor) -> Tensor:
            return -(tags * probabilities.log()).sum(-1).mean()  # DEFECT

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.out, self.loss = nn.GRU(10, 16, batch_first=True), nn.Linear(26, 5), TokenLoss()

        def forward(self, vectors: Tensor, tags: Tensor) -> Tensor:
            states = self.gru(vectors)[0]
            return self.loss(self.out(torch.cat([states, vectors], -1)).softmax(-1), tags)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.tagger = nn.Embedding(30, 10), Tagger()

        def forward(self, ids: Tensor, tags: Tensor) -> Tensor:
            return self.tagger(self.words(ids), tags)

    torch.manual_seed(18)
    model = Model()
    with torch.no_grad():
        model.words.weight[29] *= 1000.0
    batches = [(torch.randint(0, 29, (6, 7)), F.one_hot(torch.randint(0, 5, (6, 7)), 5).float()) for _ in range(8)]
    batches[5][0][2, 3] = 29
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case("ID_3, ID_29", "log(softmax)", (1, "loss"), LOG0, mechanism="log-of-zero")
def softmax_regression_normal_weights() -> Loop:
    """Weights drawn from a unit normal and a learning rate of 10: the second step meets a probability of 0."""
    torch.manual_seed(19)
    model = nn.Linear(144, 10)
    nn.init.normal_(model.weight)

    def cost(x: Tensor, y: Tensor) -> Tensor:
        activation = torch.softmax(model(x), dim=1)
        return -torch.sum(y * torch.log(activation))  # DEFECT

    return train(model, torch.optim.SGD(model.parameters(), lr=10.0), cost, digit_batches(4, 20, pixels=144))
