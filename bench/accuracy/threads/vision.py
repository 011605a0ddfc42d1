"""Rebuilds failures of vision losses, reported for kornia, SupContrast, pytorch-msssim and others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import mlp, replaced, train
from torch import Tensor, nn


def square_root(module: str = "") -> object:
    """The slope of a root at 0, times 0 or not."""
    return origin("backward", "invalid divide_by_zero", "div", module, node="SqrtBackward*")


def pictures(number: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(torch.rand(size, 1, 6, 6), torch.rand(size, 1, 6, 6)) for _ in range(number)]


@case(
    "HobbitLong/SupContrast#141",
    "division by a count",
    (2, "loss"),
    origin("forward", "invalid", "div", "supcon"),
    mechanism="mean-over-nothing",
)
def anchor_without_a_positive(fixed: bool = False) -> Loop:
    """The mean over an anchor's positives, of which there are none in the batch: 0 / 0."""

    class SupCon(nn.Module):
        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            others = 1 - torch.eye(len(y))
            positive = (y.unsqueeze(0) == y.unsqueeze(1)).float() * others
            logits = z @ z.t() / 0.8
            log_p = logits - torch.log((logits.exp() * others).sum(1, keepdim=True))
            count = positive.sum(1).clamp(min=1) if fixed else positive.sum(1)
            return -((positive * log_p).sum(1) / count).mean()  # DEFECT

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.supcon = mlp(5, 8, 4), SupCon()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.supcon(F.normalize(self.net(x), dim=1), y)

    torch.manual_seed(180)
    model = Model()
    batches = [(torch.randn(4, 5), torch.tensor([0, 1, 1, 0])) for _ in range(5)]
    batches = replaced(batches, 2, (batches[2][0], torch.tensor([0, 1, 1, 3])))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "tfzhou/ContrastiveSeg#68",
    "log of a sum",
    (3, "loss"),
    origin("forward", "divide_by_zero", "log"),
    mechanism="log-of-zero",
)
def pixel_contrast_without_a_guard(fixed: bool = False) -> Loop:
    """log(exp_logits + neg_logits): with features that are not normalised all exponentials underflow."""
    torch.manual_seed(181)
    model = nn.Linear(5, 4, bias=False)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        z = model(x)
        logits = z @ z.t() / 0.07
        logits = logits - logits.amax().detach()
        exp_logits = logits.exp()
        negatives = (exp_logits * (y.unsqueeze(0) != y.unsqueeze(1))).sum(1, keepdim=True)
        log_p = logits - torch.log(exp_logits + negatives + (1e-10 if fixed else 0.0))  # DEFECT
        return -log_p.clamp(min=-1e4).mean()

    batches = [(0.1 * torch.randn(4, 5), torch.tensor([0, 0, 1, 1])) for _ in range(6)]
    batches = replaced(batches, 3, (20 * torch.randn(4, 5), batches[3][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-4), loss, batches)


@case(
    "VainF/pytorch-msssim#7",
    "power of a negative number",
    (4, "loss"),
    origin("forward", "invalid", "pow", "msssim"),
    mechanism="outside-domain",
)
def msssim_of_anticorrelated_images(fixed: bool = False) -> Loop:
    """The structure term of an inverted image is negative, and it is raised to a fractional power."""

    class MSSSIM(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            a, b = a.flatten(1), b.flatten(1)
            da, db = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
            cs = ((da * db).mean(1) * 2 + 9e-4) / (da.square().mean(1) + db.square().mean(1) + 9e-4)
            return 1 - (cs.relu() + 1e-6 if fixed else cs).pow(0.2856).mean()  # DEFECT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.msssim = nn.Conv2d(1, 1, 1), MSSSIM()

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return self.msssim(self.conv(x), target)

    torch.manual_seed(182)
    model = Net()
    nn.init.ones_(model.conv.weight)
    batches = [(x, x + 0.1 * y) for x, y in pictures(7)]
    batches = replaced(batches, 4, (batches[4][0], 1 - batches[4][0]))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-4), model, batches)


@case(
    "kornia/kornia#918",
    "power at 0",
    (2, "gradient"),
    origin("backward", "divide_by_zero", "pow", "focal", node="PowBackward*"),
    mechanism="derivative-at-pole",
)
def focal_loss_with_a_small_gamma(fixed: bool = False) -> Loop:
    """(1 - p) ** 0.5 where p is exactly 1: the power's slope is 1 / 0."""

    class Focal(nn.Module):
        def forward(self, logits: Tensor, y: Tensor) -> Tensor:
            p = torch.sigmoid(logits)
            missing = (1 - p + 1e-6 if fixed else 1 - p).pow(0.5)  # DEFECT
            return -(missing * y * torch.log(p + 1e-8)).mean()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.focal = nn.Linear(6, 1), Focal()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.focal(self.net(x), y)

    torch.manual_seed(183)
    model = Net()
    batches = [(torch.randn(6, 6), torch.ones(6, 1)) for _ in range(5)]
    certain = (100.0 * model.net.weight.detach().sign()).expand(6, 6).clone()
    batches = replaced(batches, 2, (certain, batches[2][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-2), model, batches)


@case(
    "richzhang/PerceptualSimilarity#69",
    "root at 0",
    (3, "gradient"),
    square_root("lpips"),
    mechanism="derivative-at-pole",
)
def perceptual_features_of_a_black_patch(fixed: bool = False) -> Loop:
    """Features are divided by sqrt(sum of squares) + eps: where all are 0 the root's slope is infinite."""

    class LPIPS(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            squares = (features**2).sum(1, keepdim=True)
            norm = torch.sqrt(squares + 1e-10 if fixed else squares)  # DEFECT
            return features / (norm + 1e-10)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.lpips = nn.Conv2d(1, 3, 3, bias=False), LPIPS()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (self.lpips(self.features(a)) - self.lpips(self.features(b))).square().mean()

    torch.manual_seed(184)
    model = Net()
    with torch.no_grad():
        model.features.weight.abs_()
    batches = pictures(6)
    black = batches[3][0].clone()
    black[2] = 0
    batches = replaced(batches, 3, (black, batches[3][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-3), model, batches)


@case("ronghuaiyang/arcface-pytorch#91", "root at 0", (2, "gradient"), square_root(), mechanism="derivative-at-pole")
def arcface_sine(fixed: bool = False) -> Loop:
    """Sine = sqrt(1 - cosine ** 2), clamped at 0, for an embedding that lies on its class centre."""
    torch.manual_seed(185)
    model = nn.Linear(4, 4, bias=False)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        cosine = F.normalize(x, dim=1) @ F.normalize(model.weight, dim=1).t()
        sine = torch.sqrt((1 - cosine**2).clamp(1e-6 if fixed else 0.0, 1))  # DEFECT
        margin = 0.88 * cosine - 0.48 * sine
        chosen = F.one_hot(y, 4).bool()
        return F.cross_entropy(8 * torch.where(chosen, margin, cosine), y)

    batches = [(torch.randn(5, 4), torch.randint(0, 4, (5,))) for _ in range(5)]
    x = batches[2][0].clone()
    x[1] = torch.tensor([0.0, 2.0, 0.0, 0.0])
    y = batches[2][1].clone()
    y[1] = 1
    batches = replaced(batches, 2, (x, y))
    with torch.no_grad():
        model.weight[1] = torch.tensor([0.0, 1.0, 0.0, 0.0])

    def hold(step: int) -> None:
        with torch.no_grad():
            model.weight[1] = torch.tensor([0.0, 1.0, 0.0, 0.0])

    return train(model, torch.optim.SGD(model.parameters(), lr=1e-2), loss, batches, hold)


@case(
    "chaddy1004/sobel-operator-pytorch#1",
    "root at 0",
    (1, "gradient"),
    square_root("sobel"),
    mechanism="derivative-at-pole",
)
def sobel_magnitude_of_a_flat_region(fixed: bool = False) -> Loop:
    """sqrt(gx ** 2 + gy ** 2) of an image whose edges vanish."""

    class Sobel(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            x, y = image[..., :-1, 1:] - image[..., :-1, :-1], image[..., 1:, :-1] - image[..., :-1, :-1]
            return torch.sqrt(x**2 + y**2 + (1e-8 if fixed else 0.0))  # DEFECT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.sobel = nn.Conv2d(1, 1, 1), Sobel()

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return F.l1_loss(self.sobel(self.conv(x)), self.sobel(target))

    torch.manual_seed(187)
    model = Net()
    batches = replaced(pictures(4), 1, (torch.full((4, 1, 6, 6), 0.5), pictures(1)[0][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-2), model, batches)


@case(
    "pyg-team/pytorch_geometric#2559", "root at 0", (2, "gradient"), square_root("norm"), mechanism="derivative-at-pole"
)
def instance_norm_of_a_constant_graph(fixed: bool = False) -> Loop:
    """X / (var.sqrt() + eps): the eps stands behind the root, and a graph whose nodes are equal has variance 0."""

    class InstanceNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = x - x.mean(1, keepdim=True)
            var = (out * out).mean(1, keepdim=True)
            return out / ((var + 1e-5).sqrt() if fixed else var.sqrt() + 1e-5)  # DEFECT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.norm, self.out = nn.Linear(4, 6), InstanceNorm(), nn.Linear(6, 1)

        def forward(self, nodes: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.out(self.norm(self.lin(nodes))).mean(1), y)

    torch.manual_seed(188)
    model = Net()
    batches = [(torch.randn(3, 5, 4), torch.randn(3, 1)) for _ in range(5)]
    nodes = batches[2][0].clone()
    nodes[1] = 0
    batches = replaced(batches, 2, (nodes, batches[2][1]))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "keras-team/keras#23075",
    "inverse root at 0",
    (3, "gradient"),
    origin("forward", "divide_by_zero", "rsqrt", "normalise"),
    origin("backward", "invalid", "mul", "normalise", node="RsqrtBackward*", first_nan=True),
    mechanism="zero-scale derivative-at-pole",
)
def inverse_norm_that_is_bounded_afterwards(fixed: bool = False) -> Loop:
    """X * min(rsqrt(sum of squares), 1 / eps): the bound repairs the value of a zero vector, not its gradient.

    The vector's norm is 0 in the forward pass (zero-scale); what fails is the slope at that pole: both names fit.
    """

    class Normalise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            squares = x.square().sum(-1, keepdim=True)
            if fixed:
                return x * torch.rsqrt(squares.clamp(min=1e-12))
            inverse = torch.rsqrt(squares)  # DEFECT
            return x * torch.minimum(inverse, torch.tensor(1e6))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.normalise = nn.Linear(4, 3, bias=False), Normalise()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.normalise(self.lin(x)), y)

    torch.manual_seed(189)
    model = Net()
    batches = [(torch.randn(5, 4), torch.randn(5, 3)) for _ in range(6)]
    x = batches[3][0].clone()
    x[2] = 0
    batches = replaced(batches, 3, (x, batches[3][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-2), model, batches)
