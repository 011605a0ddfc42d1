"""Finds all minimal causes and cures among a set of changes, with few questions.

The changes turn a cell without the event into one with it. The event is taken to be monotone: a sufficient set stays
sufficient when changes are added. The minimal sufficient sets (causes) then play the role of minimal unsatisfiable
subsets (MUSes), and the minimal sets whose removal prevents the event (cures) that of minimal correction sets (MCSes).
Together they decide every other set, and asking about them is the shortest proof there is. The loop is that of MARCO
(Liffiton, Previti, Malik, Marques-Silva 2016, "Fast, flexible MUS enumeration"), with another choice of seed.

Each question is the one expected to decide most open sets, under a belief over simple explanations: one or two causes
of up to three changes each, smaller ones being likelier. The belief only orders the questions. If no simple
explanation fits, the question that splits the open sets most evenly comes next, until nothing is open.

An open question cannot contradict what is known. Monotony is therefore tested by one more question, about the set that
is least like any asked before.

A set without an answer (an invalid combination, a cell that crashes) is skipped: it is no cause, and the answers for
other sets decide without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

MOST_CHANGES = 12
"""A table holds all 2 ** 12 sets."""
_LARGEST_CAUSE = 3
_SIZE_WEIGHT = 0.2
_PAIR_WEIGHT = 0.25

Changes = frozenset[int]


class NotMonotoneError(ValueError):
    """Raised for a sufficient set of changes with an insufficient superset: `smaller` and `larger`."""

    def __init__(self, smaller: Changes, larger: Changes) -> None:
        super().__init__(f"{sorted(smaller)} is sufficient, but {sorted(larger)} is not")
        self.smaller = smaller
        self.larger = larger


@dataclass
class MinimalSets:
    """All minimal causes and cures, and the sets that were asked about, in order."""

    causes: list[Changes]
    cures: list[Changes]
    asked: list[Changes] = field(default_factory=list)
    skipped: list[Changes] = field(default_factory=list)
    """Sets without an answer."""


Ask = Callable[[Changes], bool | None]
"""Whether a set of changes is sufficient for the event; None if it has no answer."""


def search(n: int, ask: Ask, weights: Sequence[float] | None = None) -> MinimalSets:
    """All minimal causes and cures among `n` changes; all together are sufficient, and none is not.

    `ask` is not called for these two sets, nor, except for one test, for sets that monotony decides. `weights`: how
    likely each change is to be part of a cause, 1 being average. NotMonotoneError if the test fails.
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
            table.skip(question)
        else:
            table.note(question, answer)
            belief.update(question, answer)
    test = table.least_like({0, table.size - 1, *map(_point, asked)})
    if test is not None:
        asked.append(_changes(test))
        answer = ask(_changes(test))
        if answer is not None:
            table.note(test, answer)
    skipped = [_changes(int(point)) for point in np.flatnonzero(table.skipped)]
    return MinimalSets(table.minimal_sufficient(), table.minimal_cures(), asked, skipped)


class _Table:
    """What is known about each of the 2 ** n sets; a set is the bits of its index."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.size = 2**n
        points = np.arange(self.size)
        self.above: NDArray[np.bool_] = (points[:, None] & points[None, :]) == points[:, None]
        """[a, b]: whether b contains a."""
        self.sufficient = np.zeros(self.size, bool)
        self.open = np.ones(self.size, bool)
        self.skipped = np.zeros(self.size, bool)

    def note(self, point: int, sufficient: bool) -> None:
        """Note an answer: yes decides all supersets, no decides all subsets."""
        decided = self.above[point] if sufficient else self.above[:, point]
        if (clash := decided & ~self.open & ~self.skipped & (self.sufficient != sufficient)).any():
            other = int(np.flatnonzero(clash)[0])
            pair = (point, other) if sufficient else (other, point)
            raise NotMonotoneError(_changes(pair[0]), _changes(pair[1]))
        self.sufficient[decided] = sufficient
        self.open &= ~decided

    def skip(self, point: int) -> None:
        """Close a set without an answer; it decides no other."""
        self.open[point] = False
        self.skipped[point] = True

    def gains(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number of open sets that a yes, and a no, would decide, per set."""
        return (self.above & self.open).sum(1), (self.above & self.open[:, None]).sum(0)

    def least_like(self, asked: set[int]) -> int | None:
        """The set that differs most from every one asked; None if all were asked."""
        distance = {p: min((p ^ other).bit_count() for other in asked) for p in range(self.size) if p not in asked}
        return max(distance, key=lambda p: (distance[p], self.sufficient[p]), default=None)

    def minimal_sufficient(self) -> list[Changes]:
        """The minimal sufficient sets (MUSes)."""
        inside = self.sufficient & ~self.skipped
        smaller = self.above & inside[:, None]
        return [_changes(int(p)) for p in np.flatnonzero(inside) if smaller[:, p].sum() == 1]

    def minimal_cures(self) -> list[Changes]:
        """The minimal sets whose removal leaves an insufficient set (MCSes)."""
        full = self.size - 1
        outside = ~self.sufficient & ~self.skipped
        larger = self.above & outside[None, :]
        cures = [_changes(full ^ int(p)) for p in np.flatnonzero(outside) if larger[p].sum() == 1]
        return sorted(cures, key=lambda cure: (len(cure), sorted(cure)))


class _Belief:
    """Simple explanations, how likely each is, and what each says about every set."""

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

    def update(self, point: int, sufficient: bool) -> None:
        """Drop the explanations that an answer contradicts."""
        keep = self.says[:, point] == sufficient
        self.says, self.weight = self.says[keep], self.weight[keep]

    def probabilities(self) -> NDArray[np.float64] | None:
        """Probability that each set is sufficient; None if no explanation is left."""
        total = self.weight.sum()
        return (self.weight @ self.says) / total if total > 0 else None


def _best(table: _Table, belief: _Belief) -> int:
    yes, no = table.gains()
    chance = belief.probabilities()
    candidates = np.flatnonzero(table.open)
    if chance is None:
        return int(candidates[np.minimum(yes, no)[candidates].argmax()])
    p = np.clip(chance, 1e-9, 1 - 1e-9)
    # Surprise (entropy) alone ignores that one answer decides many sets; the expected share of sets decided alone
    # prefers questions with an obvious answer. So they are added.
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
