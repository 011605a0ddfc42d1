"""Estimates how often a combination fails over seeds, and what so few seeds could have missed."""

from __future__ import annotations

import pandas as pd
from scipy.stats import binom

from nangrid.analysis.claims import ALPHA, clopper_pearson
from nangrid.analysis.survival import factors_of

POWER = 0.8


def rates(times: pd.DataFrame) -> pd.DataFrame:
    """One row per combination of levels: the factors, seeds, met (any event), rate, lower, upper, events, flagged.

    A crash or a timeout is no evidence about the rate: `flagged` counts it, `seeds` does not.
    """
    factors = factors_of(times)
    groups = times.groupby(factors, sort=False, dropna=False) if factors else [((), times)]
    rows = []
    for levels, cells in groups:
        usable = cells[~cells["flagged"]]
        met, n = int(usable["event"].notna().sum()), len(usable)
        lower, upper = _interval(met, n)
        events = ", ".join(sorted(usable["event"].dropna().unique()))
        row = dict(zip(factors, levels if isinstance(levels, tuple) else (levels,), strict=True))
        flagged = int(cells["flagged"].sum())
        rate = met / n if n else float("nan")
        rows.append(
            row
            | {"seeds": n, "met": met, "rate": rate, "lower": lower, "upper": upper}
            | {"events": events, "flagged": flagged}
        )
    return pd.DataFrame(rows)


def _interval(met: int, seeds: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval; where no seed or every seed met it, the one-sided bound."""
    if seeds == 0:
        return 0.0, 1.0
    if met in (0, seeds):
        return (0.0, unseen(seeds)) if met == 0 else (1 - unseen(seeds), 1.0)
    return clopper_pearson(met, seeds)


def unseen(seeds: int) -> float:
    """The highest rate at which `seeds` runs without the event are no surprise: they have a chance of 5 %."""
    return 1 - float(ALPHA ** (1 / seeds))


def detectable(pairs: int, tests: int) -> float | None:
    """The smallest share of pairs that a level must change to be detected with 80 % power.

    Pairs are alike in all but the level, one level never fails, and p is two-sided, Holm over `tests` factors.
    None if not even a level that always fails would be significant with so few pairs.
    """
    wanted = next(k for k in range(1, 200) if 2 * 0.5**k <= ALPHA / tests)
    if pairs < wanted:
        return None
    shares = [share / 100 for share in range(1, 101)]
    return next(share for share in shares if binom.sf(wanted - 1, pairs, share) >= POWER)
