"""Faults of one batch of rank 1, for the loops of these tests."""

from typing import Any

BAD = 3
"""Index of the faulty batch."""


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
