"""Tests that an event is monotone, and finds its minimal causes and cures if it is not.

The tests ask about sets whose answer monotony predicts, far from those asked before.
"""

from __future__ import annotations

import random
from itertools import chain, combinations

from nangrid.diagnosis.minimal_sets import (
    Ask,
    Border,
    Changes,
    MinimalSets,
    NotMonotoneError,
    OutOfRunsError,
    to_changes,
    to_point,
)

MOST_TESTS = 4
"""Tests of one search: one per three changes, up to this number, and at most half of the sets that were not asked."""
_DRAWN = 100


def check_monotony(n: int, ask: Ask, found: MinimalSets) -> list[Changes]:
    """The sets that were asked, all of which agree with `found`; NotMonotoneError for the first that does not.

    They lie above a cause and below a largest harmless set in turn. A set without an answer is no test.
    """
    border = known_border(n, found)
    agreeing = []
    unasked = 2**n - 2 - len(found.asked)
    for number in range(min(MOST_TESTS, max(1, n // 3), unasked // 2)):
        if (point := _far_away(border, above=number % 2 == 0)) is None:
            break
        border.asked.append(point)
        answer, predicted = ask(to_changes(point)), border.known(point)
        if answer is not None and answer is not predicted:
            raise _clash(border, point, answer)
        if answer is not None:
            agreeing.append(to_changes(point))
    return agreeing


def known_border(n: int, found: MinimalSets) -> Border:
    """What a finished search knows."""
    border = Border(n, lambda changes: None)
    border.sufficient += map(to_point, found.causes)
    border.insufficient += [border.full & ~to_point(cure) for cure in found.cures]
    border.asked += map(to_point, found.asked)
    return border


def _far_away(border: Border, above: bool) -> int | None:
    """Of some sets that monotony decides, the one that differs most from every set asked; None if all were asked."""
    draw = random.Random(len(border.asked))
    asked = {0, border.full, *border.asked}
    starts = border.sufficient if above else border.insufficient
    drawn = {_neighbour(border, draw.choice(starts), above, draw) for _ in range(_DRAWN)} - asked
    return max(sorted(drawn), key=lambda point: min((point ^ other).bit_count() for other in asked), default=None)


def _neighbour(border: Border, start: int, above: bool, draw: random.Random) -> int:
    """A random set that contains `start`, or lies in it."""
    other = draw.getrandbits(border.full.bit_length())
    return start | other if above else start & other


def _clash(border: Border, point: int, sufficient: bool) -> NotMonotoneError:
    if sufficient:
        larger = next(other for other in border.insufficient if other & point == point)
        return NotMonotoneError(to_changes(point), to_changes(larger))
    smaller = next(other for other in border.sufficient if other & point == other)
    return NotMonotoneError(to_changes(smaller), to_changes(point))


def exhaust(n: int, ask: Ask) -> MinimalSets:
    """Sufficient sets without a sufficient subset, and the smallest removals that prevent the event.

    Sets without an answer are skipped. The result is incomplete if `ask` raises OutOfRunsError.
    """
    everything = frozenset(range(n))
    answers: dict[Changes, bool | None] = {frozenset(): False, everything: True}
    sets = [frozenset(s) for s in chain.from_iterable(combinations(range(n), size) for size in range(1, n))]
    complete = True
    try:
        for changes in sets:
            answers[changes] = ask(changes)
    except OutOfRunsError:
        complete = False
    return minimal_among(answers, everything, complete)


def minimal_among(answers: dict[Changes, bool | None], everything: Changes, complete: bool) -> MinimalSets:
    """The minimal causes and cures among sets that were asked, whatever monotony would say about the others."""
    causes = _minimal([s for s, sufficient in answers.items() if sufficient])
    cures = _minimal([everything - s for s, sufficient in answers.items() if sufficient is False])
    asked = [s for s in answers if s and s != everything]
    return MinimalSets(causes, cures, asked, [s for s, answer in answers.items() if answer is None], complete)


def _minimal(sets: list[Changes]) -> list[Changes]:
    return sorted((s for s in sets if not any(other < s for other in sets)), key=lambda s: (len(s), sorted(s)))
