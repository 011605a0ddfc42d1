"""Rebuilds bugs of inverse functions and angles, as DEBAR and PyTorch's users report them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import mlp, train
from torch import Tensor, nn

LOG0 = origin("forward", "divide_by_zero", "log")


@case(
    "PyTorch users: acos",
    "acos beyond 1",
    (6, "loss"),
    origin("forward", "invalid", "acos", "angle"),
    mechanism="outside-domain",
)
def rotation_angle_rounding() -> Loop:
    """The angle between two rotations, acos((trace - 1) / 2): a matrix that is only nearly a rotation has a cosine
    above 1.
    """

    class Angle(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            trace = (a * b).sum(dim=(1, 2))
            return torch.acos((trace - 1) / 2)  # DEFECT

    class Pose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.angle = nn.Linear(5, 6), Angle()

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            first, second = self.net(x).chunk(2, dim=1)
            first = F.normalize(first, dim=1)
            second = F.normalize(second - (first * second).sum(1, keepdim=True) * first, dim=1)
            rotation = torch.stack([first, second, torch.linalg.cross(first, second)], dim=1)
            return self.angle(rotation, target).mean()

    torch.manual_seed(63)
    model = Pose()
    batches = [(torch.randn(6, 5), torch.eye(3).expand(6, 3, 3).clone()) for _ in range(9)]
    batches[6][1][4] *= 40.0
    with torch.no_grad():
        model.net.bias.copy_(torch.tensor([1.0, 0.2, 0.1, 0.0, 1.0, 0.3]) * 3)
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "PyTorch users: acos",
    "acos at 1",
    (3, "gradient"),
    origin("backward", "divide_by_zero", "rsqrt", node="AcosBackward*"),
    mechanism="derivative-at-pole",
)
def arcface_margin() -> Loop:
    """ArcFace's margin through acos of a cosine: one that equals its class centre has a cosine of exactly 1."""
    torch.manual_seed(64)
    centres = nn.Parameter(F.normalize(torch.randn(4, 6), dim=1))
    body = nn.Linear(6, 6)
    model = nn.ParameterDict({"centres": centres, "weight": body.weight, "bias": body.bias})
    with torch.no_grad():
        centres[2] = torch.tensor([0.0, 1, 0, 0, 0, 0])

    def loss(x: Tensor, straight: Tensor, y: Tensor) -> Tensor:
        features = torch.where(straight, x, body(x))
        cosine = F.normalize(features, dim=1) @ F.normalize(centres, dim=1).t()
        theta = torch.acos(cosine.clamp(-1, 1))  # DEFECT
        margin = 0.3 * F.one_hot(y, 4)
        return F.cross_entropy(8 * torch.cos(theta + margin), y)

    batches = []
    for step in range(6):
        x, straight, y = torch.randn(5, 6), torch.zeros(5, 1).bool(), torch.randint(0, 4, (5,))
        if step == 3:
            x[1], straight[1], y[1] = torch.tensor([0.0, 3, 0, 0, 0, 0]), True, 2
        batches.append((x, straight, y))
    return train(model, torch.optim.SGD([body.weight, body.bias], lr=0.05), loss, batches)


@case(
    "PyTorch users: atanh",
    "atanh at 1",
    (4, "loss"),
    origin("forward", "divide_by_zero", "atanh", "distance"),
    mechanism="outside-domain",
)
def poincare_distance() -> Loop:
    """Hyperbolic embeddings: the distance from the origin is 2 atanh(|x|), and a projection puts far points exactly on
    the rim, where atanh is not defined.
    """

    class Distance(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * torch.atanh(x.norm(dim=-1))  # DEFECT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.distance = nn.Embedding(20, 1), Distance()

        def forward(self, ids: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.distance(self.place(ids).clamp(-1, 1)), y)

    torch.manual_seed(65)
    model = Net()
    with torch.no_grad():
        model.place.weight.uniform_(-0.5, 0.5)
        model.place.weight[13] = 4.0
    batches = [(torch.randint(0, 13, (8,)), torch.rand(8)) for _ in range(7)]
    batches[4][0][5] = 13
    return train(model, torch.optim.SGD(model.parameters(), lr=0.01), model, batches)


@case("PyTorch users: angles", "slope of a standing point", (4, "loss"), origin("forward", "invalid", "div", "heading"))
def heading_of_a_standing_car() -> Loop:
    """A trajectory's heading by atan(dy / dx): a car that stands has neither, 0 / 0."""

    class Heading(nn.Module):
        def forward(self, path: Tensor) -> Tensor:
            step = path[:, 1:] - path[:, :-1]
            return torch.atan(step[..., 1] / step[..., 0])  # DEFECT

    class Planner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.heading = nn.Linear(4, 10), Heading()

        def forward(self, x: Tensor, y: Tensor, speed: Tensor) -> Tensor:
            moves = self.net(x).view(-1, 5, 2) * speed.view(-1, 1, 1)
            return (1 - torch.cos(self.heading(moves.cumsum(1)) - y)).mean()

    torch.manual_seed(66)
    model = Planner()
    batches = [(torch.randn(6, 4), torch.randn(6, 4), 1 + torch.rand(6)) for _ in range(7)]
    batches[4][2][3] = 0.0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "PyTorch users: asin",
    "asin beyond 1",
    (5, "loss"),
    origin("forward", "invalid", "asin"),
    mechanism="outside-domain",
)
def haversine_distance() -> Loop:
    """Predicted coordinates compared by the haversine formula; a latitude of 400 degrees, from a swapped column, makes
    the sum under the root exceed 1.
    """
    torch.manual_seed(67)
    model = mlp(4, 8, 2, act=nn.Tanh)

    def loss(x: Tensor, place: Tensor) -> Tensor:
        guess = 0.3 * torch.tanh(model(x))
        d = (guess - place) / 2
        a = d[:, 0].sin().square() + torch.cos(place[:, 0]) ** -2 * d[:, 1].sin().square()
        return (2 * torch.asin(torch.sqrt(a + 1e-9))).mean()  # DEFECT

    batches = [(torch.randn(8, 4), 0.5 * torch.rand(8, 2)) for _ in range(8)]
    batches[5][1][2] = torch.tensor([1.55, 1.9])
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), loss, batches)
