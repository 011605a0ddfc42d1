"""Builds what many cases share: the usual loop, small images, small networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from case import Loop
from torch import Tensor, nn


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[..., Tensor],
    batches: Sequence[Any],
    after: Callable[[int], object] = lambda step: None,
    **options: Any,
) -> Loop:
    """The loop that most scripts have: zero_grad, forward, backward; batches repeat when they are used up."""

    def closure_of(call: int) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(*batches[call % len(batches)])
            loss.backward()
            return loss

        return closure

    return Loop(model, optimizer, closure_of, after, **options)


def digits(count: int, seed: int = 0, pixels: int = 64, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Flat grey images in [0, 1], and the number drawn on each."""
    drawn = torch.rand(classes, pixels, generator=torch.Generator().manual_seed(99)).round()
    noise = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=noise)
    return (drawn[labels] + 0.2 * torch.randn(count, pixels, generator=noise)).clamp(0, 1), labels


def digit_batches(number: int, size: int, pixels: int = 64, classes: int = 10) -> list[tuple[Tensor, Tensor]]:
    """Batches of digits with one-hot labels, as the TensorFlow tutorials feed them."""
    batches = [digits(size, seed, pixels, classes) for seed in range(number)]
    return [(x, F.one_hot(y, classes).float()) for x, y in batches]


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these sizes with activations between them."""
    layers: list[nn.Module] = []
    for i, (before, behind) in enumerate(pairwise(sizes)):
        layers += [act()] * (i > 0) + [nn.Linear(before, behind)]
    return nn.Sequential(*layers)


class TinyLM(nn.Module):
    """A language model of one layer."""

    def __init__(self, vocabulary: int = 24, width: int = 12) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(vocabulary, width), nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.body(self.embed(ids))))
        return logits


def logps(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-probability of each label."""
    return logits.float().log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def replaced(batches: list[Any], at: int, batch: Any) -> list[Any]:
    """The batches with another one at this position."""
    return [*batches[:at], batch, *batches[at + 1 :]]
