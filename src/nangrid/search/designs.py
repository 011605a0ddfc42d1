"""Which cells of a product of levels are worth running, where all of them are too many?

A design is a list of combinations, each a level per factor. What it can tell: the full product everything; one factor
at a time around a base what each level does there, and no interaction; a covering array of strength 2 has every pair of
levels in some cell, so that any failure of two levels shows at least once, but seldom what brought it about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

Levels = Mapping[str, Sequence[str]]
Combination = dict[str, str]


def full(levels: Levels) -> list[Combination]:
    """The whole product."""
    return [dict(zip(levels, chosen, strict=True)) for chosen in product(*levels.values())]


def one_factor(base: Mapping[str, str], levels: Levels) -> list[Combination]:
    """The base, and every combination that differs from it in one factor."""
    return [dict(base)] + [
        {**base, factor: level} for factor, own in levels.items() for level in own if level != base[factor]
    ]


def covering(levels: Levels, excluded: Sequence[Mapping[str, str]] = ()) -> list[Combination]:
    """Every pair of levels in at least one combination, but for those that hold an excluded set of levels."""
    from covertable import make

    # covertable reads a dot in a name as nesting
    names = {factor: factor.replace(".", "/") for factor in levels}
    differs = [
        {"operator": "or", "conditions": [{"operator": "ne", "left": names[f], "value": v} for f, v in some.items()]}
        for some in excluded
    ]
    rows = make({names[factor]: list(own) for factor, own in levels.items()}, strength=2, constraints=differs)
    return [{factor: str(row[name]) for factor, name in names.items()} for row in rows]


def pairs(levels: Levels, excluded: Sequence[Mapping[str, str]] = ()) -> set[frozenset[tuple[str, str]]]:
    """The pairs of levels that a covering array must hold: those that no exclusion of two levels forbids."""
    forbidden = {frozenset(some.items()) for some in excluded}
    found = set()
    for (factor, own), (other, its) in combinations(levels.items(), 2):
        found |= {frozenset({(factor, level), (other, second)}) for level in own for second in its}
    return found - forbidden
