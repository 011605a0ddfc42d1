"""Rebuilds failures of models that are trained in float16 throughout, reported for Lightning, PyTorch and others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import TinyLM, replaced, train
from torch import Tensor, nn

HALF = "fp16-activation-overflow"


@case(
    "Lightning-AI/pytorch-lightning#20619",
    "Adam in float16",
    (0, "parameter"),
    origin("optimizer", "invalid", "addcdiv _foreach_addcdiv div _foreach_div", node="*", at="adam.py:*"),
    mechanism="adam-eps-underflow",
)
def true_half_precision_with_adam(fixed: bool = False) -> Loop:
    """precision=16-true: Adam's default eps turns parameters NaN in the first step, even with a learning rate of 0."""
    torch.manual_seed(210)
    model = TinyLM().half()

    def loss(ids: Tensor) -> Tensor:
        return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())

    batches = [(torch.randint(0, 12, (2, 6)),) for _ in range(4)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, eps=1e-4 if fixed else 1e-8)
    return train(model, optimizer, loss, batches)


@case(
    "unslothai/unsloth-zoo#866",
    "float16 gradient",
    (2, "gradient"),
    origin("backward", "overflow", "mul mm", "layers.0", node="*"),
    mechanism="fp16-gradient-overflow",
)
def gradient_along_the_residual_stream(fixed: bool = False) -> Loop:
    """Activations stay far below 65504, the gradient grows along the layers of the residual stream past it."""

    class Layer(nn.Module):
        def __init__(self, gain: float) -> None:
            super().__init__()
            self.scale, self.gain = nn.Parameter(torch.ones(6)), gain

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x * self.gain) * self.scale  # DEFECT

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 6)
            self.layers = nn.ModuleList(Layer(gain) for gain in (100.0, 60.0, 40.0))

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for layer in self.layers:
                x = layer(x)
            return x.float().sum()

    torch.manual_seed(211)
    model = Model().to(torch.bfloat16 if fixed else torch.float16)
    dtype = model.embed.weight.dtype
    batches = [(torch.randn(2, 3).to(dtype),) for _ in range(5)]
    batches = replaced(batches, 2, (torch.zeros(2, 3).to(dtype),))

    def rest(step: int) -> None:
        with torch.no_grad():
            model.embed.bias.zero_()

    return train(model, torch.optim.SGD(model.parameters(), lr=1e-7), model, batches, rest)


@case(
    "unslothai/unsloth-zoo#600",
    "float16 activation",
    (3, "loss"),
    origin("forward", "overflow", "mul", "mlp"),
    mechanism=HALF,
)
def gated_mlp_in_float16(fixed: bool = False) -> Loop:
    """down_proj(act(gate) * up): both factors are in range, their product exceeds float16."""

    class MLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(6, 8, bias=False), nn.Linear(6, 8, bias=False)
            self.down_proj = nn.Linear(8, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            gate, up = F.gelu(self.gate_proj(x)), self.up_proj(x)
            if fixed:
                return F.linear(gate.float() * up.float(), self.down_proj.weight.float())
            return self.down_proj(gate * up)  # DEFECT

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = MLP()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.mlp(x).float() * 1e-5, y)

    torch.manual_seed(212)
    model = Model().half()
    with torch.no_grad():
        for weight in model.parameters():
            weight.abs_()
    batches = [(torch.randn(3, 6).half(), torch.randn(3, 6)) for _ in range(6)]
    batches = replaced(batches, 3, (torch.full((3, 6), 600.0).half(), batches[3][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-6), model, batches)


@case(
    "pytorch/pytorch#33596",
    "eps that rounds to 0",
    (2, "loss"),
    origin("forward", "invalid", "div", "project"),
    mechanism="zero-scale",
)
def normalised_zero_vector_in_float16(fixed: bool = False) -> Loop:
    """F.normalize divides by max(norm, 1e-12); in float16 that bound is 0."""

    class Project(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(5, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.lin(x), dim=-1, eps=1e-4 if fixed else 1e-12)  # DEFECT

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = Project()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return 1 - (self.project(a) * self.project(b)).sum(-1).float().mean()

    torch.manual_seed(213)
    model = Encoder().half()
    batches = [(torch.randn(4, 5).half(), torch.randn(4, 5).half()) for _ in range(5)]
    empty = batches[2][0].clone()
    empty[3] = 0
    batches = replaced(batches, 2, (empty, batches[2][1]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-4), model, batches)
