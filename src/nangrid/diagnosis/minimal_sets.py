"""Which minimal sets of changes are enough for an event, and which minimal removals prevent it, in few questions?

The changes are those between a cell that does not meet the event and one that does. The event is taken to be
monotone: a set that is enough stays so when changes are added. Then the minimal enough sets (causes) and the
maximal sets that are not enough (whose complements are the cures) decide every other set, and asking them all is
the shortest proof there is. What else is asked only serves to find them.

Each question is the one expected to decide most of what is open, under a belief over simple explanations: one
cause or two, of up to three changes each, smaller ones likelier. The belief only orders the questions: where no
simple explanation fits, the questions that split what is open most evenly go on until nothing is open.

Questions that are open cannot contradict what is known, so monotony is tested by one more that is not: the set
least like any that was asked.

A set that has no answer (levels that do not go together, a cell that crashes) is left out: it is no cause and its
rest no cure, and what is known of the others decides without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

MOST_CHANGES = 12
"""2 ** 12 sets are kept in a table."""
_LARGEST_CAUSE = 3
_SIZE_WEIGHT = 0.2
_PAIR_WEIGHT = 0.25

Changes = frozenset[int]


class NotMonotoneError(ValueError):
    """A set of changes is enough and a larger one is not; `smaller` and `larger` are the two."""

    def __init__(self, smaller: Changes, larger: Changes) -> None:
        super().__init__(f"{sorted(smaller)} is enough and {sorted(larger)} is not")
        self.smaller = smaller
        self.larger = larger


@dataclass
class MinimalSets:
    """All causes and cures, and every set that was asked about, in order."""

    causes: list[Changes]
    cures: list[Changes]
    asked: list[Changes] = field(default_factory=list)
    left_out: list[Changes] = field(default_factory=list)
    """Sets without an answer."""


Ask = Callable[[Changes], bool | None]
"""Whether a set of changes brings the event about; None if it has no answer."""


def search(n: int, ask: Ask, weights: Sequence[float] | None = None) -> MinimalSets:
    """All minimal causes and cures among `n` changes, of which all together are enough and none is not.

    `ask` is never asked about all or none, nor, but for one test, about what monotony decides: NotMonotoneError if
    the test fails. `weights` say how likely each change
    is to be part of a cause, 1 being as any other.
    """
    if n > MOST_CHANGES:
        raise ValueError(f"{n} changes are more than {MOST_CHANGES}: name fewer factors that differ.")
    table = _Table(n)
    table.note(table.size - 1, True)
    table.note(0, False)
    belief = _Belief(n, weights or [1.0] * n)
    asked: list[Changes] = []
    while table.open.any():
        question = _best(table, belief)
        answer = ask(_changes(question))
        asked.append(_changes(question))
        if answer is None:
            table.leave_out(question)
        else:
            table.note(question, answer)
            belief.update(question, answer)
    test = table.least_like({0, table.size - 1, *map(_point, asked)})
    if test is not None:
        asked.append(_changes(test))
        answer = ask(_changes(test))
        if answer is not None:
            table.note(test, answer)
    left_out = [_changes(int(point)) for point in np.flatnonzero(table.left_out)]
    return MinimalSets(table.minimal_enough(), table.minimal_cures(), asked, left_out)


class _Table:
    """What is known of each of the 2 ** n sets, a set being the bits of its index."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.size = 2**n
        points = np.arange(self.size)
        self.above: NDArray[np.bool_] = (points[:, None] & points[None, :]) == points[:, None]
        """[a, b]: b holds all of a."""
        self.enough = np.zeros(self.size, bool)
        self.open = np.ones(self.size, bool)
        self.left_out = np.zeros(self.size, bool)

    def note(self, point: int, enough: bool) -> None:
        """An answer decides all larger sets, or all smaller ones."""
        decided = self.above[point] if enough else self.above[:, point]
        if (clash := decided & ~self.open & ~self.left_out & (self.enough != enough)).any():
            other = int(np.flatnonzero(clash)[0])
            pair = (point, other) if enough else (other, point)
            raise NotMonotoneError(_changes(pair[0]), _changes(pair[1]))
        self.enough[decided] = enough
        self.open &= ~decided

    def leave_out(self, point: int) -> None:
        """A set without an answer decides no other."""
        self.open[point] = False
        self.left_out[point] = True

    def gains(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many open sets each answer would decide, by point: yes, no."""
        return (self.above & self.open).sum(1), (self.above & self.open[:, None]).sum(0)

    def least_like(self, asked: set[int]) -> int | None:
        """The set that differs in most changes from every one asked; None if all were asked."""
        distance = {p: min((p ^ other).bit_count() for other in asked) for p in range(self.size) if p not in asked}
        return max(distance, key=lambda p: (distance[p], self.enough[p]), default=None)

    def minimal_enough(self) -> list[Changes]:
        """The minimal sets that are enough."""
        inside = self.enough & ~self.left_out
        smaller = self.above & inside[:, None]
        return [_changes(int(p)) for p in np.flatnonzero(inside) if smaller[:, p].sum() == 1]

    def minimal_cures(self) -> list[Changes]:
        """The minimal sets whose removal from all changes leaves too little."""
        full = self.size - 1
        outside = ~self.enough & ~self.left_out
        larger = self.above & outside[None, :]
        cures = [_changes(full ^ int(p)) for p in np.flatnonzero(outside) if larger[p].sum() == 1]
        return sorted(cures, key=lambda cure: (len(cure), sorted(cure)))


class _Belief:
    """Simple explanations, how likely each is, and what each says of every set."""

    def __init__(self, n: int, weights: Sequence[float]) -> None:
        points = np.arange(2**n)
        causes = [c for size in range(1, min(n, _LARGEST_CAUSE) + 1) for c in combinations(range(n), size)]
        masks = np.array([sum(1 << i for i in cause) for cause in causes])
        single = (points[None, :] & masks[:, None]) == masks[:, None]
        prior = np.array([_SIZE_WEIGHT ** (len(c) - 1) * np.prod([weights[i] for i in c]) for c in causes])
        pairs = [(a, b) for a, b in combinations(range(len(causes)), 2) if not _nested(masks[a], masks[b])]
        first, second = np.array(pairs, int).reshape(-1, 2).T
        self.says: NDArray[np.bool_] = np.concatenate([single, single[first] | single[second]])
        self.weight = np.concatenate([prior, _PAIR_WEIGHT * prior[first] * prior[second] / prior.mean()])

    def update(self, point: int, enough: bool) -> None:
        """Drop the explanations that say otherwise."""
        keep = self.says[:, point] == enough
        self.says, self.weight = self.says[keep], self.weight[keep]

    def probabilities(self) -> NDArray[np.float64] | None:
        """How likely each set is to be enough; None if no explanation is left."""
        total = self.weight.sum()
        return (self.weight @ self.says) / total if total > 0 else None


def _best(table: _Table, belief: _Belief) -> int:
    yes, no = table.gains()
    chance = belief.probabilities()
    candidates = np.flatnonzero(table.open)
    if chance is None:
        return int(candidates[np.minimum(yes, no)[candidates].argmax()])
    p = np.clip(chance, 1e-9, 1 - 1e-9)
    surprise = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    expected = p * yes + (1 - p) * no
    score = surprise + expected / table.open.sum()
    return int(candidates[score[candidates].argmax()])


def _nested(a: int, b: int) -> bool:
    return a & b in (a, b)


def _point(changes: Changes) -> int:
    return sum(1 << i for i in changes)


def _changes(point: int) -> Changes:
    return frozenset(i for i in range(int(point).bit_length()) if point >> i & 1)
