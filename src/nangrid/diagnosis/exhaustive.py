"""Finds minimal causes and cures of an event that is not monotone, by asking about every set of changes."""

from __future__ import annotations

from itertools import chain, combinations

from nangrid.diagnosis.minimal_sets import Ask, Changes, MinimalSets


def exhaust(n: int, ask: Ask) -> MinimalSets:
    """Sufficient sets without a sufficient subset, and the smallest removals that prevent the event.

    Sets without an answer are skipped.
    """
    everything = frozenset(range(n))
    sets = [frozenset(s) for s in chain.from_iterable(combinations(range(n), size) for size in range(1, n))]
    answers = {s: ask(s) for s in sets} | {frozenset[int](): False, everything: True}
    causes = _minimal([s for s, sufficient in answers.items() if sufficient])
    cures = _minimal([everything - s for s, sufficient in answers.items() if sufficient is False])
    return MinimalSets(causes, cures, sets, [s for s, sufficient in answers.items() if sufficient is None])


def _minimal(sets: list[Changes]) -> list[Changes]:
    return sorted((s for s in sets if not any(other < s for other in sets)), key=lambda s: (len(s), sorted(s)))
