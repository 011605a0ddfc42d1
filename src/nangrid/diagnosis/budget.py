"""Counts the runs of a diagnosis, up to the number that the user allows."""

from __future__ import annotations

from collections.abc import Hashable, Iterable


class Budget:
    """The runs of a diagnosis, each known by its cell."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.runs: set[Hashable] = set()

    def take(self, cells: Iterable[Hashable]) -> list[Hashable]:
        """Count these cells, and return those that fit. One that was counted before is free: it only runs longer."""
        allowed = []
        for cell in cells:
            if cell in self.runs or self.left:
                self.runs.add(cell)
                allowed.append(cell)
        return allowed

    @property
    def left(self) -> int:
        """Runs that may still be made."""
        return self.most - len(self.runs)
