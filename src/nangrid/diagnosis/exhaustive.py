"""Finds minimal causes and cures of an event that is not monotone, by asking about every set of changes."""

from __future__ import annotations

from itertools import chain, combinations

from nangrid.diagnosis.minimal_sets import Ask, Changes, MinimalSets, OutOfRunsError


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
