"""Rebuilds failures of adapters, initial weights, optimizers and schedules, reported for PEFT, Lightning and others."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import mlp, replaced, train
from torch import Tensor, nn

HALF = "fp16-activation-overflow"


class DoraLayer(nn.Module):
    """The magnitude of a DoRA adapter, as PEFT computes it."""

    def __init__(self, base: nn.Linear, fixed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(base.weight.norm(dim=1).detach())
        self.smallest = 1e-6 if fixed else 0.0

    def forward(self, x: Tensor, weight: Tensor, delta: Tensor) -> Tensor:
        norm = (weight + delta).norm(dim=1).detach().clamp(min=self.smallest)
        scale = self.weight / norm  # DEFECT
        return scale * F.linear(x, weight + delta)


class DoraLinear(nn.Module):
    """A frozen linear layer with a DoRA adapter."""

    def __init__(self, base: nn.Linear, fixed: bool) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(2, base.in_features) * 0.1)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, 2))
        self.lora_magnitude_vector = nn.ModuleDict({"default": DoraLayer(base, fixed)})

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lora_magnitude_vector["default"](x, self.base_layer.weight, self.lora_B @ self.lora_A)
        return out


@case(
    "huggingface/peft#2049",
    "DoRA of a zero row",
    (0, "loss"),
    origin("forward", "invalid", "div", "o_proj.lora_magnitude_vector.default", at="training.py:*"),
    mechanism="dora-zero-norm zero-scale",
)
def dora_on_a_projection_with_zero_rows(fixed: bool = False) -> Loop:
    """The base weight has rows of zeros: magnitude and norm are both 0, and DoRA divides one by the other.

    A division by a norm of 0 is zero-scale; that it is DoRA's is the closer name.
    """

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = nn.Linear(6, 6, bias=False)
            with torch.no_grad():
                base.weight[2] = 0
            self.o_proj, self.out = DoraLinear(base, fixed), nn.Linear(6, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.out(self.o_proj(x)), y)

    torch.manual_seed(200)
    model = Block()
    batches = [(torch.randn(4, 6), torch.randint(0, 3, (4,))) for _ in range(4)]
    parameters = [p for p in model.parameters() if p.requires_grad]
    return train(model, torch.optim.AdamW(parameters, lr=1e-3), model, batches)


@case(
    "KohakuBlueleaf/LyCORIS#166",
    "DoRA of a zero row",
    (2, "loss"),
    origin("forward", "invalid", "div", "lora"),
    mechanism="dora-zero-norm zero-scale",
)
def weight_decomposition_of_a_row_that_vanishes(fixed: bool = False) -> Loop:
    """apply_weight_decompose divides the weight by its norm; pruning after step 1 leaves a row of zeros.

    DoRA written outside of PEFT: a division by a norm of 0 is as right a name as DoRA's own.
    """

    class Decomposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.dora_scale = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.ones(5, 1))

        def forward(self, x: Tensor) -> Tensor:
            norm = self.weight.norm(dim=1, keepdim=True) + (1e-7 if fixed else 0.0)
            weight = self.weight * (self.dora_scale / norm if fixed else 1.0)
            if not fixed:
                weight = weight / norm * self.dora_scale  # DEFECT
            return F.linear(x, weight)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lora, self.out = Decomposed(), nn.Linear(5, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.out(self.lora(x)), y)

    torch.manual_seed(201)
    model = Net()

    def prune(step: int) -> None:
        if step == 1:
            with torch.no_grad():
                model.lora.weight[3] = 0

    batches = [(torch.randn(4, 6), torch.randint(0, 3, (4,))) for _ in range(5)]
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-2), model, batches, prune)


@case(
    "huggingface/transformers#46002",
    "uninitialised weights",
    (0, "loss"),
    origin("input", "nonfinite_input", "addmm", "classifier", node="*"),
    mechanism="uninitialised-parameter",
)
def classification_head_of_empty_memory(fixed: bool = False) -> Loop:
    """The head is not in the checkpoint and is never filled: its memory holds NaN from the start."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.classifier = nn.Embedding(20, 6), nn.Linear(6, 2)

        def forward(self, ids: Tensor, y: Tensor) -> Tensor:
            logits = self.classifier(self.embed(ids).mean(1))  # DEFECT
            return F.cross_entropy(logits, y)

    torch.manual_seed(202)
    model = Classifier()
    if not fixed:
        with torch.no_grad():
            model.classifier.weight[1, 2:4] = float("nan")  # as empty memory happened to hold
    batches = [(torch.randint(0, 20, (4, 5)), torch.randint(0, 2, (4,))) for _ in range(4)]
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-4), model, batches)


@case(
    "NVIDIA-NeMo/Automodel#1527",
    "uninitialised weights",
    (0, "loss"),
    origin("input", "nonfinite_input", "mul", "layers.1.norm", node="*"),
    mechanism="uninitialised-parameter",
)
def norm_weight_of_garbage(fixed: bool = False) -> Loop:
    """Deferred initialisation fills all layers but one norm, whose weight is left as to_empty() made it."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            scaled = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
            return scaled * self.weight  # DEFECT

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mixer = Norm(), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mixer(self.norm(x))

    class Mamba(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer() for _ in range(2))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return F.mse_loss(x, y)

    torch.manual_seed(203)
    model = Mamba()
    if not fixed:
        with torch.no_grad():
            model.layers[1].norm.weight[4] = float("inf")  # as empty memory happened to hold
    batches = [(torch.randn(3, 6), torch.randn(3, 6)) for _ in range(4)]
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), model, batches, clip=1.0)


@case(
    "karpathy/nanoGPT#136",
    "divergence",
    (6, "loss"),
    origin("forward", "overflow", "addmm", "net.2"),
    mechanism="divergence",
)
def learning_rate_too_high(fixed: bool = False) -> Loop:
    """The loss rises from step to step until a product exceeds float32; a lower learning rate cures it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(4, 16, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.net(x), y)  # DEFECT

    torch.manual_seed(204)
    model = Net()
    batch = (torch.randn(16, 4), torch.randn(16, 4))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-3 if fixed else 6.0), model, [batch])


class NorMuon(torch.optim.Optimizer):
    """The part of NorMuon that rescales an update by the ratio of its norms before and after normalisation."""

    def __init__(self, parameters: Iterable[nn.Parameter], fixed: bool) -> None:
        super().__init__(parameters, {"lr": 0.02, "smallest": 1e-8 if fixed else 0.0})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                update = p.grad / (p.grad.square().mean(-1, keepdim=True).sqrt() + 1e-8)
                scale = p.grad.norm() / update.norm().clamp(min=group["smallest"])  # DEFECT
                p -= group["lr"] * update * scale


class AdaNorm(torch.optim.Optimizer):
    """The part of AdaNorm that corrects a gradient by the running mean of its norm."""

    def __init__(self, parameters: Iterable[nn.Parameter], fixed: bool) -> None:
        super().__init__(parameters, {"lr": 0.01, "eps": 1e-8 if fixed else 0.0})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                norm = p.grad.norm()
                average = self.state[p].get("norm", norm) * 0.95 + norm * 0.05
                self.state[p]["norm"] = average
                corrected = p.grad * average / (norm + group["eps"])  # DEFECT
                p -= group["lr"] * corrected


@case(
    "microsoft/dion#24",
    "optimizer divides by a norm",
    (0, "parameter"),
    origin("optimizer", "invalid", "div", node="*", at="training.py:*"),
    mechanism="optimizer-eps-underflow",
)
def normuon_with_a_zero_gradient(fixed: bool = False) -> Loop:
    """Zero-initialised output weights give the layer before them a gradient of exactly 0: NorMuon divides 0 by 0.

    The optimizer's guard against that is 0, which is what optimizer-eps-underflow says; the thread added 1e-8.
    """

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(5, 8, bias=False), nn.Linear(8, 5, bias=False)
            nn.init.zeros_(self.down.weight)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(x + self.down(torch.tanh(self.up(x))), y)

    torch.manual_seed(205)
    model = Mlp()
    batches = [(torch.randn(6, 5), torch.randn(6, 5)) for _ in range(4)]
    return train(model, NorMuon(model.parameters(), fixed), model, batches)


@case(
    "shivram1987/AdaNorm#1",
    "optimizer divides by a norm",
    (3, "parameter"),
    origin("optimizer", "invalid", "div", node="*", at="training.py:*"),
    mechanism="optimizer-eps-underflow",
)
def adanorm_with_a_zero_gradient(fixed: bool = False) -> Loop:
    """The correction divides by the norm of the gradient plus an eps of 0; a batch of dead units has no gradient."""
    torch.manual_seed(206)
    model = nn.Linear(4, 3)
    batches = [(torch.rand(5, 4),) for _ in range(6)]
    batches = replaced(batches, 3, (torch.full((5, 4), -1e4),))
    with torch.no_grad():
        model.weight.abs_()
    return train(model, AdaNorm(model.parameters(), fixed), lambda x: model(x).relu().mean(), batches)


@case(
    "rickgroen/cov-weighting#3",
    "division by a mean",
    (2, "loss"),
    origin("forward", "invalid", "div"),
    mechanism="zero-scale",
)
def weights_by_the_variation_of_losses(fixed: bool = False) -> Loop:
    """Each loss is divided by its running mean, a statistic of its values; a loss that starts at 0 has mean 0, too."""
    torch.manual_seed(207)
    model = nn.Linear(4, 2)
    means: list[Tensor] = []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        losses = (model(x) - y).abs().mean(0)
        if torch.equal(x, torch.zeros_like(x)):
            losses = losses * torch.tensor([1.0, 0.0])
            means.clear()
        means.append(losses.detach())
        mean = torch.stack(means).mean(0) + (1e-8 if fixed else 0.0)
        return (losses / mean).sum()  # DEFECT

    batches = [(torch.randn(5, 4), torch.randn(5, 2)) for _ in range(5)]
    batches = replaced(batches, 2, (torch.zeros(5, 4), batches[2][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-3), loss, batches)


@case(
    "TiankaiHang/Min-SNR-Diffusion-Training#2",
    "zero terminal SNR",
    (3, "loss"),
    origin("forward", "invalid", "div"),
)
def min_snr_weight_at_the_last_timestep(fixed: bool = False) -> Loop:
    """min(SNR, 5) / SNR with betas rescaled to zero terminal SNR: the last timestep gives 0 / 0."""
    torch.manual_seed(208)
    model = mlp(5, 8, 4)
    alphas = torch.linspace(1.0, 0.0, 11)[1:]

    def loss(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        a = alphas[t].unsqueeze(1)
        predicted = model(torch.cat([a.sqrt() * x + (1 - a).sqrt() * noise, a], 1))
        snr = a / (1 - a)
        weight = snr.clamp(max=5) / (snr + 1 if fixed else snr)  # DEFECT
        return (weight * (predicted - noise) ** 2).mean()

    batches = [(torch.randn(4, 4), torch.randn(4, 4), torch.randint(0, 9, (4,))) for _ in range(6)]
    batches = replaced(batches, 3, (*batches[3][:2], torch.tensor([1, 9, 4, 2])))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, batches)


@case(
    "Nerogar/OneTrainer#212",
    "zero terminal SNR",
    (2, "loss"),
    origin("forward", "divide_by_zero", "reciprocal rsqrt"),
)
def debiased_estimation_weight(fixed: bool = False) -> Loop:
    """1 / sqrt(SNR) at a timestep whose SNR is 0."""
    torch.manual_seed(209)
    model = mlp(5, 8, 4)
    alphas = torch.linspace(1.0, 0.0, 11)[1:]

    def loss(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        a = alphas[t].unsqueeze(1)
        predicted = model(torch.cat([a.sqrt() * x + (1 - a).sqrt() * noise, a], 1))
        snr = (a / (1 - a)).clamp(1e-3 if fixed else 0.0, 1000)
        weight = 1 / torch.sqrt(snr)  # DEFECT
        return (weight * (predicted - noise) ** 2).mean()

    batches = [(torch.randn(4, 4), torch.randn(4, 4), torch.randint(0, 9, (4,))) for _ in range(5)]
    batches = replaced(batches, 2, (*batches[2][:2], torch.tensor([9, 3, 4, 2])))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, batches)
