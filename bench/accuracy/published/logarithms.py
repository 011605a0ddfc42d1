"""Rebuilds bugs of logarithms and exponentials, as DEBAR and PyTorch's users report them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import mlp, train
from torch import Tensor, nn

LOG0 = origin("forward", "divide_by_zero", "log")


@case(
    "DEBAR: log1p",
    "log1p(-1)",
    (4, "loss"),
    origin("forward", "divide_by_zero", "log1p", "hazard"),
    mechanism="log-of-zero",
)
def survival_hazard() -> Loop:
    """Discrete-time survival: log(1 - hazard) summed over the intervals lived through; a hazard is exactly 1."""

    class Hazard(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(5, 6)

        def forward(self, x: Tensor, lived: Tensor) -> Tensor:
            hazard = torch.sigmoid(self.net(x))
            return -(torch.log1p(-hazard) * lived).sum(1).mean()  # DEFECT

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hazard = Hazard()

        def forward(self, x: Tensor, lived: Tensor) -> Tensor:
            return self.hazard(x, lived)

    torch.manual_seed(68)
    model = Model()
    batches = [(torch.randn(9, 5), (torch.rand(9, 6) < 0.7).float()) for _ in range(7)]
    batches[4][0][7] *= 200.0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-2), model, batches)


@case(
    "PyTorch users: entropy",
    "x log x at 0",
    (5, "loss"),
    origin("forward", "divide_by_zero", "log", "policy"),
    mechanism="log-of-zero",
)
def entropy_bonus() -> Loop:
    """A policy's entropy bonus, -sum(p log p): with an action that is ruled out, 0 * -inf."""

    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(6, 16, 4, act=nn.Tanh)

        def forward(self, x: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
            p = F.softmax(self.net(x).masked_fill(~allowed, float("-inf")), dim=-1)
            return p, -(p * p.log()).sum(-1)  # DEFECT

    class Agent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = Policy()

        def forward(self, x: Tensor, allowed: Tensor, advantage: Tensor) -> Tensor:
            p, entropy = self.policy(x, allowed)
            return -(p * advantage).sum(-1).mean() - 0.01 * entropy.mean()

    torch.manual_seed(69)
    model = Agent()
    batches = [(torch.randn(8, 6), torch.ones(8, 4).bool(), torch.randn(8, 4)) for _ in range(8)]
    batches[5][1][2, 3] = False
    return train(model, torch.optim.Adam(model.parameters(), lr=3e-3), model, batches)


@case(
    "PyTorch users: where",
    "log under a where",
    (4, "gradient"),
    origin("backward", "invalid", "div", "transform", node="LogBackward*"),
    origin("forward", "divide_by_zero", "log", "transform"),
    mechanism="log-of-zero",
)
def where_does_not_guard() -> Loop:
    """log(x) where x > 0 and 0 elsewhere: the forward is guarded, the gradient of the branch not taken is 0 / 0."""

    class SafeLog(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))

        def forward(self, counts: Tensor) -> Tensor:
            x = counts * self.scale
            return torch.where(x > 0, torch.log(x), torch.zeros_like(x))  # DEFECT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transform, self.head = SafeLog(), nn.Linear(5, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.head(self.transform(x)), y)

    torch.manual_seed(70)
    model = Net()
    batches = [(torch.randint(1, 40, (8, 5)).float(), torch.rand(8, 1)) for _ in range(7)]
    batches[4][0][6, 2] = 0.0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "PyTorch users: logsumexp",
    "log(sum(exp)) underflow",
    (5, "loss"),
    origin("forward", "divide_by_zero", "log", "crf"),
    mechanism="log-of-zero",
)
def crf_partition() -> Loop:
    """A linear-chain CRF's forward algorithm in the log domain, without the maximum: scores of -200 make exp 0 for
    every state, and the logarithm of their sum -inf.
    """

    class CRF(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transitions = nn.Parameter(torch.randn(4, 4) * 0.1)

        def forward(self, emissions: Tensor, tags: Tensor) -> Tensor:
            score = emissions[:, 0]
            gold = score.gather(1, tags[:, :1])
            for t in range(1, emissions.shape[1]):
                paths = score.unsqueeze(2) + self.transitions
                score = torch.log(torch.exp(paths).sum(dim=1)) + emissions[:, t]  # DEFECT
                gold = gold + emissions[:, t].gather(1, tags[:, t : t + 1])
            return (torch.logsumexp(score, 1) - gold.squeeze(1)).mean()

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emit, self.crf = nn.Linear(6, 4), CRF()

        def forward(self, x: Tensor, tags: Tensor, evidence: Tensor) -> Tensor:
            return self.crf(self.emit(x) - evidence, tags)

    torch.manual_seed(71)
    model = Tagger()
    batches = [(torch.randn(3, 5, 6), torch.randint(0, 4, (3, 5)), torch.zeros(3, 5, 1)) for _ in range(8)]
    batches[5][2][1, 2] = 300.0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-2), model, batches)


@case(
    "PyTorch users: log-cosh",
    "cosh overflow",
    (4, "loss"),
    origin("forward", "overflow", "cosh"),
    mechanism="exp-overflow",
)
def log_cosh_loss() -> Loop:
    """log(cosh(error)) as a smooth absolute error; one target is in another unit."""
    torch.manual_seed(72)
    model = mlp(5, 10, 1)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return torch.log(torch.cosh(model(x) - y)).mean()  # DEFECT

    batches = [(torch.randn(10, 5), torch.randn(10, 1)) for _ in range(7)]
    batches[4][1][3] = 5000.0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-2), loss, batches)


@case(
    "PyTorch users: normal log prob",
    "division by a variance",
    (5, "loss"),
    origin("forward", "divide_by_zero", "div", "likelihood"),
)
def gaussian_likelihood() -> Loop:
    """The Gaussian's negative log likelihood by hand, sigma = softplus(.): an input far out makes sigma exactly 0."""

    class Likelihood(nn.Module):
        def forward(self, mean: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
            distance = (y - mean).square()
            return (0.5 * distance / sigma.square() + torch.log(sigma + 1e-6)).mean()  # DEFECT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.likelihood = nn.Linear(4, 2), Likelihood()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            mean, raw = self.net(x).chunk(2, dim=1)
            return self.likelihood(mean, F.softplus(raw), y)

    torch.manual_seed(73)
    model = Net()
    batches = [(torch.randn(10, 4), torch.randn(10, 1)) for _ in range(8)]
    with torch.no_grad():
        batches[5][0][8] = -1000.0 * model.net.weight[1].sign()
    return train(model, torch.optim.SGD(model.parameters(), lr=0.01), model, batches)


@case(
    "PyTorch users: normal log prob",
    "log of a scale",
    (4, "loss"),
    origin("forward", "divide_by_zero", "log"),
    mechanism="log-of-zero",
)
def policy_gradient_log_std() -> Loop:
    """A Gaussian policy's log probability: the scale is sigmoid(.), which underflows to 0 for an unusual state. The
    squared distance is taken in units of a bounded scale, its logarithm is not.
    """
    torch.manual_seed(74)
    model = nn.ModuleDict({"mean": nn.Linear(3, 2), "scale": nn.Linear(3, 2)})

    def loss(state: Tensor, action: Tensor, advantage: Tensor) -> Tensor:
        scale = torch.sigmoid(model["scale"](state))
        z = (action - model["mean"](state)) / scale.clamp(min=0.01)
        log_prob = -0.5 * z.square().clamp(max=100) - scale.log() - 0.919  # DEFECT
        return -(log_prob.sum(1) * advantage).mean()

    batches = [(torch.randn(8, 3), torch.randn(8, 2), torch.rand(8)) for _ in range(7)]
    with torch.no_grad():
        batches[4][0][1] = -700.0 * model["scale"].weight[0].sign()
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), loss, batches)


@case(
    "PyTorch users: Poisson",
    "exp of a rate",
    (5, "loss"),
    origin("forward", "overflow", "exp", "rate"),
    mechanism="exp-overflow",
)
def poisson_regression() -> Loop:
    """Counts with a log link: exp of a linear predictor, of a feature that escaped scaling; the loss takes rate - y
    log.
    """

    class Rate(nn.Module):
        def forward(self, log_rate: Tensor) -> Tensor:
            return log_rate.exp()  # DEFECT

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.rate = nn.Linear(4, 1), Rate()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            log_rate = self.linear(x)
            return (self.rate(log_rate) - y * log_rate).mean()

    torch.manual_seed(75)
    model = Counts()
    batches = [(torch.randn(12, 4), torch.poisson(torch.ones(12, 1))) for _ in range(8)]
    with torch.no_grad():
        batches[5][0][9] = 400.0 * model.linear.weight[0].sign()
    return train(model, torch.optim.SGD(model.parameters(), lr=0.01), model, batches)


@case(
    "PyTorch users: logit",
    "logit at 1",
    (4, "loss"),
    origin("forward", "divide_by_zero", "logit", "teacher"),
    mechanism="log-of-zero",
)
def distillation_logits() -> Loop:
    """Distillation from a teacher that gives probabilities: logit(p) of one that was rounded to 1. The student's
    temperature multiplies them, so a gradient goes through.
    """

    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, p: Tensor) -> Tensor:
            return torch.logit(p) / self.temperature  # DEFECT

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.teacher = mlp(6, 10, 3), Teacher()

        def forward(self, x: Tensor, p: Tensor) -> Tensor:
            return F.mse_loss(self.net(x), self.teacher(p))

    torch.manual_seed(76)
    model = Student()
    batches = [(torch.randn(8, 6), 0.05 + 0.9 * torch.rand(8, 3)) for _ in range(7)]
    batches[4][1][5, 1] = 1.0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "PyTorch users: prod",
    "log of a product",
    (4, "loss"),
    origin("forward", "divide_by_zero", "log"),
    mechanism="log-of-zero",
)
def noisy_or_of_many() -> Loop:
    """Multiple instance learning by noisy-or: the product of 400 factors (1 - p) underflows before its logarithm is
    taken.
    """
    torch.manual_seed(77)
    model = mlp(5, 12, 1)

    def loss(bag: Tensor, y: Tensor) -> Tensor:
        nobody = (1 - torch.sigmoid(model(bag)).squeeze(-1)).prod(dim=1)
        log_nobody = torch.log(nobody)  # DEFECT
        return -(y * torch.log(1 - nobody + 1e-6) + (1 - y) * log_nobody).mean()

    bags = [4, 6, 5, 4, 400, 5, 6]
    batches = [(torch.randn(6, size, 5), torch.tensor([0.0, 1, 0, 1, 0, 1])) for size in bags]
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), loss, batches)
