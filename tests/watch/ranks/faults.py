"""Faults of one batch of rank 1, for the loops of these tests."""

from typing import Any

import torch
import torch.distributed as dist

BAD = 3
"""Index of the faulty batch."""


def give_batches(s: Any) -> None:
    """Six batches of each rank's own, and a list for their losses."""
    s.rank = dist.get_rank()
    torch.manual_seed(s.rank)
    s.inputs = [torch.rand(4, 3) + 0.1 for _ in range(6)]
    s.labels = [torch.randint(0, 3, (4,)) for _ in range(6)]
    s.losses = []


def without_labels(s: Any) -> None:
    """The loss is not a number, and the gradients are zero: their reduction tells the other rank nothing."""
    if s.rank == 1:
        s.labels[BAD].fill_(-100)


def zero_input(s: Any) -> None:
    """The logarithm of 0 is infinite."""
    if s.rank == 1:
        s.inputs[BAD][1, 2] = 0


def ones(s: Any) -> None:
    """The loss is finite, and the slope of its root is not."""
    if s.rank == 1:
        s.inputs[BAD].fill_(1)


def weight_decay(s: Any) -> None:
    """The first update overflows in the elements that rank 1 holds."""
    if s.rank == 1:
        s.optimizer.param_groups[0].update(lr=100.0, weight_decay=3e38)
