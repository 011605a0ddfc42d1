"""Which minimal sets are enough where adding a change can prevent the event? All of them are asked."""

from __future__ import annotations

from itertools import chain, combinations

from nangrid.diagnosis.minimal_sets import Ask, Changes, MinimalSets


def exhaust(n: int, ask: Ask) -> MinimalSets:
    """The sets that are enough while none of their subsets is, and the least removals that prevent the event.

    Sets without an answer are left out.
    """
    everything = frozenset(range(n))
    sets = [frozenset(s) for s in chain.from_iterable(combinations(range(n), size) for size in range(1, n))]
    answers = {s: ask(s) for s in sets} | {frozenset[int](): False, everything: True}
    causes = _minimal([s for s, enough in answers.items() if enough])
    cures = _minimal([everything - s for s, enough in answers.items() if enough is False])
    return MinimalSets(causes, cures, sets, [s for s, enough in answers.items() if enough is None])


def _minimal(sets: list[Changes]) -> list[Changes]:
    return sorted((s for s in sets if not any(other < s for other in sets)), key=lambda s: (len(s), sorted(s)))
