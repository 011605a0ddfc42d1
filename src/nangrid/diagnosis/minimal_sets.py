"""Finds all minimal causes and cures among a set of changes, with few questions.

The changes turn a cell without the event into one with it. The event is taken to be monotone: a sufficient set stays
sufficient when changes are added. The minimal sufficient sets (causes) then play the role of minimal unsatisfiable
subsets (MUSes), and the minimal sets whose removal prevents the event (cures) that of minimal correction sets (MCSes).
Together they decide every other set, and asking about them is the shortest proof there is.

The loop is dualize and advance (Gunopulos, Khardon, Mannila, Toivonen 1997): each minimal hitting set of the known
causes is either a cure, or what is left without it contains another cause. That one is shrunk by bisection (`shrink`).

A set without an answer (an invalid combination, a cell that crashes) is skipped: it is no cause, and the answers for
other sets decide without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from nangrid.diagnosis.shrink import Densities, shrink

MOST_SKIPPED = 4096
"""Sets without an answer after which the search ends; they cost no runs, but each opens the sets below it."""

Changes = frozenset[int]


class NotMonotoneError(ValueError):
    """Raised for a sufficient set of changes with an insufficient superset: `smaller` and `larger`."""

    def __init__(self, smaller: Changes, larger: Changes) -> None:
        super().__init__(f"{sorted(smaller)} is sufficient, but {sorted(larger)} is not")
        self.smaller = smaller
        self.larger = larger


class OutOfRunsError(Exception):
    """Raised by a question that would take more runs than are left."""


@dataclass
class MinimalSets:
    """All minimal causes and cures, and the sets that were asked about, in order."""

    causes: list[Changes]
    cures: list[Changes]
    asked: list[Changes] = field(default_factory=list)
    skipped: list[Changes] = field(default_factory=list)
    """Sets without an answer."""
    complete: bool = True
    """Whether every other set is decided, so that there is no further cause or cure."""


Ask = Callable[[Changes], bool | None]
"""Whether a set of changes is sufficient for the event; None if it has no answer."""


def search(n: int, ask: Ask, weights: Sequence[float] | None = None) -> MinimalSets:
    """All minimal causes and cures among `n` changes; all together are sufficient, and none is not.

    `ask` is not called for these two sets, nor for sets that monotony decides. `weights`: how likely each change is to
    be part of a cause, 1 being average. The result is incomplete if `ask` raises OutOfRunsError.
    """
    border = Border(n, ask)
    densities = Densities(n, weights or [1.0] * n)
    try:
        shrink(border, border.full, densities)
        while (point := border.next_open()) is not None and len(border.skipped) <= MOST_SKIPPED:
            if border.ask(point):
                shrink(border, point, densities)
    except OutOfRunsError:
        pass
    return border.minimal_sets()


class Border:
    """The answers so far; a set is the bits of an integer."""

    def __init__(self, n: int, ask: Ask) -> None:
        self.full = (1 << n) - 1
        self.sufficient, self.insufficient = [self.full], [0]
        self.skipped: list[int] = []
        self.asked: list[int] = []
        self._ask = ask
        self._unexplored: list[int] = []

    def ask(self, point: int) -> bool | None:
        """What monotony or an earlier answer says about a set, or else a new answer."""
        known = self.known(point)
        if known is not None or point in self.skipped:
            return known
        answer = self._ask(to_changes(point))
        self.asked.append(point)
        if answer is None:
            self.skipped.append(point)
            self._unexplored.append(point)
        else:
            (self.sufficient if answer else self.insufficient).append(point)
        return answer

    def known(self, point: int) -> bool | None:
        """What the answers say about a set by monotony."""
        if any(smaller & point == smaller for smaller in self.sufficient):
            return True
        return False if any(larger & point == point for larger in self.insufficient) else None

    def next_open(self) -> int | None:
        """A set that no answer decides; None if there is none.

        The largest such sets leave out a hitting set of the known causes. Where they have no answer, the sets below
        them, one change smaller each, take their place.
        """
        for hitting in hitting_sets(minimal(self.sufficient)):
            if self._is_open(self.full & ~hitting):
                return self.full & ~hitting
        while self._unexplored:
            point = self._unexplored[-1]
            below = (point & ~change for change in bits(point) if self.known(point) is not True)
            if (child := next(filter(self._is_open, below), None)) is not None:
                return child
            self._unexplored.pop()
        return None

    def minimal_sets(self) -> MinimalSets:
        """The minimal causes and cures among all answers."""
        cures = minimal([self.full & ~point for point in self.insufficient])
        return MinimalSets(
            causes=sorted(map(to_changes, minimal(self.sufficient)), key=_by_size),
            cures=sorted(map(to_changes, cures), key=_by_size),
            asked=list(map(to_changes, self.asked)),
            skipped=list(map(to_changes, self.skipped)),
            complete=self.next_open() is None,
        )

    def _is_open(self, point: int) -> bool:
        return self.known(point) is None and point not in self.skipped


def hitting_sets(sets: Sequence[int]) -> Iterator[int]:
    """The minimal sets that share an element with each of `sets`, by depth-first search (Murakami, Uno 2014)."""

    def extend(chosen: int, candidates: int) -> Iterator[int]:
        missed = [s for s in sets if not s & chosen]
        if not missed:
            yield chosen
            return
        options = min((s & candidates for s in missed), key=int.bit_count)
        candidates &= ~options
        for element in bits(options):
            larger = chosen | element
            # each element must be the only one that hits some set
            if all(any(s & larger == single for s in sets) for single in bits(larger)):
                yield from extend(larger, candidates)
            candidates |= element

    yield from extend(0, -1)


def minimal(points: Iterable[int]) -> list[int]:
    """The points that contain no other one."""
    kept: list[int] = []
    for point in sorted(set(points), key=int.bit_count):
        if not any(smaller & point == smaller for smaller in kept):
            kept.append(point)
    return kept


def bits(point: int) -> Iterator[int]:
    """The elements of a set, as sets of one."""
    while point:
        lowest = point & -point
        yield lowest
        point ^= lowest


def to_changes(point: int) -> Changes:
    """The numbers of the bits of an integer."""
    return frozenset(bit.bit_length() - 1 for bit in bits(point))


def to_point(changes: Changes) -> int:
    """The integer with these bits."""
    return sum(1 << number for number in changes)


def _by_size(changes: Changes) -> tuple[int, list[int]]:
    return len(changes), sorted(changes)
