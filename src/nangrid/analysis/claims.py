"""Tests whether a verdict's claims could be chance: exact one-sided tests, Holm's correction, and a grade per claim.

A claim compares two groups of runs: those that should show something (a failure under a cause) and the matched runs
that should not. Runs of one group differ in their seeds at least. The test is Boschloo's (1970): exact, for the whole
two-by-two table, and more powerful than Fisher's for the three to five seeds that a user can afford.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from scipy.stats import beta, boschloo_exact, hypergeom
from statsmodels.stats.multitest import multipletests

ALPHA = 0.05
"""Chance that a verdict with no true claim makes one."""

_FEW = 24
"""Runs up to which Boschloo's test is computed. Above, Fisher's is near, never smaller, and a thousand times faster."""
_MOST_SEEDS = 30
"""More seeds than that are no advice."""


class Grade(StrEnum):
    """Whether a claim could still be chance."""

    PROVEN = "proven"
    SEEN = "could still be chance"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Count:
    """How many runs of a group show something."""

    met: int
    runs: int

    def __add__(self, other: Count) -> Count:
        """Both groups as one."""
        return Count(self.met + other.met, self.runs + other.runs)

    @property
    def missed(self) -> int:
        """Runs that do not show it."""
        return self.runs - self.met


def chance(shown: Count, matched: Count) -> float:
    """The exact one-sided p of `shown` meeting it more often than `matched`: 1.0 if a group is empty."""
    if not shown.runs or not matched.runs or shown.met * matched.runs <= matched.met * shown.runs:
        return 1.0
    if shown.runs + matched.runs > _FEW:
        met, runs = shown.met + matched.met, shown.runs + matched.runs
        return float(hypergeom.sf(shown.met - 1, runs, met, shown.runs))
    return _boschloo(shown, matched)


@cache
def _boschloo(shown: Count, matched: Count) -> float:
    table = [[shown.met, matched.met], [shown.missed, matched.missed]]
    return float(boschloo_exact(table, alternative="greater").pvalue)


def clopper_pearson(met: float, n: float) -> tuple[float, float]:
    """The exact 95 % interval of a rate seen `met` times in `n` (Clopper and Pearson 1934).

    A fraction of `met` is allowed: the mean of any n values in 0..1 varies no more than that of n zeros and ones.
    """
    lower = float(beta.ppf(ALPHA / 2, met, n - met + 1)) if met > 0 else 0.0
    upper = float(beta.ppf(1 - ALPHA / 2, met + 1, n - met)) if met < n else 1.0
    return lower, upper


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Which claims of one verdict are proven, if a verdict may be wrong with probability `alpha`."""
    return [bool(proven) for proven in multipletests(p_values, alpha, method="holm")[0]] if len(p_values) else []


def more_seeds(shown: Count, matched: Count, seeds: int, alpha: float = ALPHA) -> int | None:
    """How many seeds to add so that the claim would be proven at `alpha`, if the rates stay as seen.

    `seeds` is how many each combination has now. None: the runs show no difference, or too many would be needed.
    """
    if chance(shown, matched) >= 1.0:
        return None
    for more in range(1, _MOST_SEEDS + 1):
        if chance(_with_seeds(shown, seeds, more), _with_seeds(matched, seeds, more)) <= alpha:
            return more
    return None


def _with_seeds(group: Count, seeds: int, more: int) -> Count:
    runs = group.runs * (seeds + more) // seeds
    return Count(round(group.met / group.runs * runs), runs)


ONE_RUN = "one run shows it; 1 more seed would tell"


def graded(grade: Grade, more: int | None = None) -> str:
    """The grade in words; `more` seeds would tell."""
    if grade is not Grade.SEEN or more is None:
        return str(grade)
    return f"{grade}; {more} more {'seed' if more == 1 else 'seeds'} would tell"
