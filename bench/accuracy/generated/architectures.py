"""Builds the small networks of generated cases, with a fault at a chosen place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from generated.faults import Fault
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH, CLASSES = 8, 3


class Harmless(nn.Module):
    """Stands where there is no fault."""

    def forward(self, x: Tensor, level: float) -> Tensor:
        return x


class Dense(nn.Module):
    """A linear layer, a ReLU and the fault."""

    def __init__(self, fault: nn.Module) -> None:
        super().__init__()
        self.lin, self.fault = nn.Linear(WIDTH, WIDTH), fault

    def forward(self, x: Tensor, level: float) -> Tensor:
        out: Tensor = self.fault(self.lin(x).relu(), level)
        return out


class Residual(nn.Module):
    """A pre-norm residual block with the fault inside."""

    def __init__(self, fault: nn.Module) -> None:
        super().__init__()
        self.norm, self.lin, self.fault = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), fault

    def forward(self, x: Tensor, level: float) -> Tensor:
        out: Tensor = x + self.fault(torch.tanh(self.lin(self.norm(x))), level)
        return out


class Attention(nn.Module):
    """Single-head causal attention with the fault on its output."""

    def __init__(self, fault: nn.Module) -> None:
        super().__init__()
        self.qkv, self.fault = nn.Linear(WIDTH, 3 * WIDTH), fault

    def forward(self, x: Tensor, level: float) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(1, 2) * WIDTH**-0.5).masked_fill(future, float("-inf"))
        out: Tensor = self.fault(scores.softmax(-1) @ v, level)
        return out


class Decoder(nn.Module):
    """A decoder layer; the fault is in its attention."""

    def __init__(self, fault: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(WIDTH), Attention(fault), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, level: float) -> Tensor:
        x = x + self.attention(self.norm(x), level)
        return x + F.gelu(self.mlp(x))


class Convolution(nn.Module):
    """A convolution over positions and the fault."""

    def __init__(self, fault: nn.Module) -> None:
        super().__init__()
        self.conv, self.fault = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), fault

    def forward(self, x: Tensor, level: float) -> Tensor:
        out: Tensor = self.fault(F.silu(self.conv(x.transpose(1, 2)).transpose(1, 2)), level)
        return out


class Recurrent(nn.Module):
    """A gated recurrence by hand, the fault inside its loop over positions."""

    def __init__(self, fault: nn.Module) -> None:
        super().__init__()
        self.gate, self.fault = nn.Linear(2 * WIDTH, WIDTH), fault

    def forward(self, x: Tensor, level: float) -> Tensor:
        state, states = torch.zeros_like(x[:, :1]), []
        for t in range(x.shape[1]):
            state = torch.tanh(self.gate(torch.cat([x[:, t : t + 1], state], -1)))
            states.append(self.fault(state, level))
        return torch.cat(states, 1)


BLOCKS: dict[str, tuple[type[nn.Module], str]] = {
    "mlp": (Dense, "fault"),
    "residual": (Residual, "fault"),
    "decoder": (Decoder, "attention.fault"),
    "convolution": (Convolution, "fault"),
    "recurrent": (Recurrent, "fault"),
}
"""Architecture -> its block, and where the fault is in it."""


class Network(nn.Module):
    """A stem, blocks and a head; `checkpointed` recomputes each block in the backward pass."""

    def __init__(self, architecture: str, faults: list[Fault | None], checkpointed: bool = False) -> None:
        super().__init__()
        block = BLOCKS[architecture][0]
        self.stem = nn.Linear(5, WIDTH)
        self.blocks = nn.ModuleList(block(fault or Harmless()) for fault in faults)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor, y: Tensor, levels: list[float]) -> Tensor:
        h = self.stem(x)  # DEFECT
        for block, level in zip(self.blocks, levels, strict=True):
            h = checkpoint(block, h, level, use_reentrant=False) if self.checkpointed else block(h, level)
        return F.cross_entropy(self.head(h.mean(1)).float(), y)
