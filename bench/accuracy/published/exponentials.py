"""Rebuilds GRIST's bugs whose exponential overflows: free energies, and softmax written by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import digit_batches, digits, mlp, train
from torch import Tensor, nn

LOG0 = origin("forward", "divide_by_zero", "log")


@case("ID_22", "log(1 + exp)", (3, "loss"), origin("forward", "overflow", "exp"), mechanism="exp-overflow")
def rbm_free_energy() -> Loop:
    """A restricted Boltzmann machine, contrastive divergence; one batch has images of 0..255. Both free energies
    become infinite or one does: the loss is inf or NaN.
    """

    class RBM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Parameter(torch.randn(30, 64) * 1e-1)
            self.v_bias, self.h_bias = nn.Parameter(torch.zeros(64)), nn.Parameter(torch.zeros(30))

        def forward(self, v: Tensor) -> Tensor:
            h = torch.bernoulli(torch.sigmoid(F.linear(v, self.W, self.h_bias)))
            return torch.bernoulli(torch.sigmoid(F.linear(h, self.W.t(), self.v_bias)))

        def free_energy(self, v: Tensor) -> Tensor:
            wx_b = F.linear(v, self.W, self.h_bias)
            hidden_term = wx_b.exp().add(1).log().sum(1)  # DEFECT
            return (-hidden_term - v.mv(self.v_bias)).mean()

    torch.manual_seed(28)
    rbm = RBM()

    def loss(v: Tensor) -> Tensor:
        return rbm.free_energy(v) - rbm.free_energy(rbm(v).detach())

    batches = [(digits(16, seed)[0],) for seed in range(6)]
    batches[3] = (batches[3][0] * 255,)
    return train(rbm, torch.optim.SGD(rbm.parameters(), lr=0.1), loss, batches)


@case(
    "ID_51",
    "log(1 + exp)",
    (2, "loss"),
    origin("forward", "overflow", "exp", "energy"),
    mechanism="divergence exp-overflow",
)
def rbm_energy_module_diverges() -> Loop:
    """Contrastive divergence with a learning rate of 20: the weights themselves pass exp's limit. The energy is a
    module of its own, called twice a step. log(1 + exp) is the published bug, the learning rate what reaches it: both
    names fit.
    """

    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W, self.h_bias = nn.Parameter(torch.randn(20, 36) * 1e-2), nn.Parameter(torch.zeros(20))

        def forward(self, v: Tensor) -> Tensor:
            softplus = torch.log(1 + torch.exp(F.linear(v, self.W, self.h_bias)))  # DEFECT
            return -softplus.sum(1).mean()

    class RBM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = Energy()

        def forward(self, v: Tensor) -> Tensor:
            p = torch.sigmoid(F.linear(v, self.energy.W, self.energy.h_bias))
            negative = torch.bernoulli(torch.sigmoid(F.linear(p, self.energy.W.t()))).detach()
            return self.energy(v) - self.energy(negative)

    torch.manual_seed(29)
    rbm = RBM()
    batches = [(digits(16, seed, pixels=36)[0].round(),) for seed in range(5)]
    return train(rbm, torch.optim.SGD(rbm.parameters(), lr=20.0), rbm, batches)


@case("ID_62, ID_63", "log(1 + exp)", (6, "loss"), origin("forward", "overflow", "exp"), mechanism="exp-overflow")
def denoising_rbm() -> Loop:
    """A convolutional machine that denoises: the same softplus by hand over feature maps, wrong only for one noisy
    image whose noise level was given in per cent.
    """

    class ConvRBM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 5, 3)

        def forward(self, v: Tensor) -> Tensor:
            wx_b = self.conv(v)
            return -torch.log(torch.exp(wx_b) + 1).sum(dim=(1, 2, 3))  # DEFECT

    torch.manual_seed(30)
    rbm = ConvRBM()

    def loss(clean: Tensor, noisy: Tensor) -> Tensor:
        return torch.mean(rbm(clean) - rbm(noisy)).square()

    batches = []
    for seed in range(9):
        clean = digits(8, seed)[0].view(-1, 1, 8, 8)
        batches.append((clean, clean + 0.3 * torch.randn(clean.shape)))
    batches[6][1][5] += 100 * 30 * torch.randn(1, 8, 8)
    return train(rbm, torch.optim.SGD(rbm.parameters(), lr=1e-5), loss, batches)


@case(
    "ID_11b",
    "exp / sum(exp)",
    (4, "loss"),
    origin("forward", "overflow", "exp"),
    origin("forward", "invalid", "div", first_nan=True),
    mechanism="exp-overflow",
)
def bad_softmax() -> Loop:
    """TensorFuzz's classifier: softmax without subtracting the maximum. Large logits: inf / inf."""
    torch.manual_seed(31)
    model = mlp(64, 32, 10)

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        logits = model(x)
        probabilities = torch.exp(logits) / torch.sum(torch.exp(logits), dim=1, keepdim=True)  # DEFECT
        return -torch.sum(labels * torch.log(probabilities.clamp(1e-6, 1)), dim=1).mean()

    batches = digit_batches(7, 20)
    batches[4] = (batches[4][0] * 2000, batches[4][1])
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, batches)


@case(
    "ID_11a, ID_16a",
    "clip(exp) / sum(exp)",
    (4, "gradient"),
    origin("forward", "overflow", "exp"),
    origin("backward", "invalid", "mul", node="ExpBackward*", first_nan=True),
    mechanism="exp-overflow",
)
def bad_softmax_clipped_above_the_line() -> Loop:
    """The numerator's logits are clipped, the denominator's are not: x / inf is 0, clipping hides it, the loss is
    finite; the gradient of the denominator's exp is 0 * inf.
    """
    torch.manual_seed(32)
    model = mlp(64, 32, 10)

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        logits = model(x)
        denominator = torch.exp(logits).sum(dim=1, keepdim=True)  # DEFECT
        probabilities = torch.exp(logits.clamp(-87, 87)) / denominator
        return -torch.sum(labels * torch.log(probabilities.clamp(1e-6, 1)), dim=1).mean()

    batches = digit_batches(7, 20)
    batches[4] = (batches[4][0] * 2000, batches[4][1])
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, batches)


@case("ID_11c", "log(exp / sum(exp))", (4, "loss"), LOG0, mechanism="log-of-zero")
def bad_softmax_log() -> Loop:
    """Logits between -80 and 80: neither exp nor the sum overflows, but a quotient underflows before its log."""
    torch.manual_seed(33)
    model = mlp(64, 32, 10)

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        logits = 80 * torch.tanh(model(x) / 20)
        e = torch.exp(logits)
        probabilities = e / e.sum(dim=1, keepdim=True)
        return -torch.sum(labels * torch.log(probabilities), dim=1).mean()  # DEFECT

    batches = digit_batches(7, 20)
    batches[4] = (batches[4][0] * 2000, batches[4][1])
    return train(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, batches)


@case(
    "ID_16b, ID_16c",
    "exp / sum(exp)",
    (5, "loss"),
    origin("forward", "overflow", "exp", "softmax"),
    mechanism="exp-overflow",
)
def bad_softmax_module_trains_into_it() -> Loop:
    """The same softmax as a module, its logarithm guarded by abs() + 1e-6; steps of Adam with 1.0 grow the logits."""

    class BadSoftmax(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            e = torch.exp(logits)  # DEFECT
            return e / e.sum(dim=1, keepdim=True)

    torch.manual_seed(34)
    model = nn.Sequential()
    model.add_module("dense", nn.Linear(64, 10))
    model.add_module("softmax", BadSoftmax())

    def loss(x: Tensor, labels: Tensor) -> Tensor:
        return -torch.sum(labels * torch.log(model(x).abs() + 1e-6), dim=1).mean()

    return train(model, torch.optim.Adam(model.parameters(), lr=1.0), loss, digit_batches(7, 20))


@case(
    "ID_17",
    "exp / sum(exp)",
    (4, "loss"),
    origin("forward", "overflow", "exp", "pixel_wise_softmax"),
    mechanism="exp-overflow",
)
def unet_pixel_wise_softmax() -> Loop:
    """A small U-Net, its softmax over channels by hand; one scan is not normalised."""

    class PixelWiseSoftmax(nn.Module):
        def forward(self, output_map: Tensor) -> Tensor:
            exponential_map = torch.exp(output_map)  # DEFECT
            return exponential_map / exponential_map.sum(dim=1, keepdim=True)

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.bottom = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.up, self.out = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(8, 2, 1)
            self.pixel_wise_softmax = PixelWiseSoftmax()

        def forward(self, x: Tensor) -> Tensor:
            skip = F.relu(self.down(x))
            low = F.relu(self.bottom(F.max_pool2d(skip, 2)))
            return self.pixel_wise_softmax(self.out(torch.cat([skip, self.up(low)], dim=1)))

    torch.manual_seed(35)
    model = UNet()

    def loss(x: Tensor, mask: Tensor) -> Tensor:
        prediction = model(x)[:, 1]
        return 1 - 2 * (prediction * mask).sum() / ((prediction + mask).sum() + 1e-5)

    batches = []
    for step in range(7):
        scan = torch.rand(2, 1, 8, 8)
        batches.append((scan * (40000.0 if step == 4 else 1.0), (scan[:, 0] > 0.5).float()))
    return train(model, torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.2), loss, batches)


@case(
    "ID_13", "exp / scatter(exp)", (3, "loss"), origin("forward", "overflow", "exp", "attend"), mechanism="exp-overflow"
)
def graph_attention_softmax() -> Loop:
    """Graph attention: the softmax over a node's edges by exp and scatter_add without the maximum; one is heavy."""

    class EdgeSoftmax(nn.Module):
        def forward(self, src: Tensor, index: Tensor, nodes: int) -> Tensor:
            out = src.exp()  # DEFECT
            total = torch.zeros(nodes, out.shape[1]).index_add_(0, index, out)
            return out / (total[index] + 1e-16)

    class GAT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.score, self.attend, self.out = (
                nn.Linear(5, 8),
                nn.Linear(17, 2),
                EdgeSoftmax(),
                nn.Linear(16, 3),
            )

        def forward(self, x: Tensor, edges: Tensor, weight: Tensor) -> Tensor:
            h = self.project(x)
            source, target = edges
            score = F.leaky_relu(self.score(torch.cat([h[source], h[target], weight.unsqueeze(1)], dim=1)), 0.2)
            alpha = self.attend(score, target, len(x))
            message = (alpha.unsqueeze(2) * h[source].unsqueeze(1)).flatten(1)
            return self.out(torch.zeros(len(x), 16).index_add_(0, target, message))

    torch.manual_seed(36)
    model = GAT()

    def loss(x: Tensor, edges: Tensor, weight: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x, edges, weight), y)

    batches = [
        (torch.randn(12, 5), torch.randint(0, 12, (2, 40)), torch.rand(40), torch.randint(0, 3, (12,)))
        for _ in range(6)
    ]
    batches[3][2][17] = 5e4
    batches[3][2][18] = -5e4
    with torch.no_grad():
        model.score.weight[:, -1] = torch.tensor([0.3, -0.3])
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), loss, batches)
