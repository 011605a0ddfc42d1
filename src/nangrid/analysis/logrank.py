"""Tests whether the levels of a factor survive for different times, everything else being equal.

Cells are compared within strata, a stratum being the cells that are equal in every other factor and in the seed. The
statistic is the stratified log-rank; its p comes from permuting the levels inside the strata, all permutations where
they are few, and so it holds for a handful of cells and for levels that never fail.

Under permutation the log-rank numerator is a sum of scores (observed minus expected events of each cell, Peto and
Peto 1972) that do not depend on the labels: Z_g = sum of the scores of the cells at level g. Q = Z' C^- Z with C the
covariance of Z over permutations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from statsmodels.duration.survfunc import survdiff

MOST_EXACT = 20_000
RANDOM = 4_999
_AT_ONCE = 2_000_000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LogRank:
    """Result of the test."""

    chi2: float
    """The stratified log-rank statistic, as statsmodels' survdiff has it; NaN where nothing is compared."""
    p: float
    """Share of permutations whose statistic is at least as large."""
    exact: bool
    """Whether all permutations were counted."""
    compared: int
    """Strata with several levels."""
    strata: int
    """The informative ones: those in which cells survive for different times."""
    least_p: float
    """The smallest p that these strata could give, by a perfect separation of the levels."""


def logrank(time: Ints, happened: NDArray[np.bool_], level: Ints, stratum: Ints, seed: int = 0) -> LogRank:
    """Compare the levels (0..k-1) within strata. Strata with one level or with equal times are uninformative."""
    scores = _scores(time, happened, stratum)
    compared = [cells for cells in _groups(stratum) if len(set(level[cells])) > 1]
    informative = [cells for cells in compared if np.ptp(scores[cells]) > 1e-12]
    levels = int(level.max()) + 1 if len(level) else 0
    if not informative:
        return LogRank(math.nan, 1.0, True, len(compared), 0, 1.0)
    exact = math.prod(math.factorial(len(cells)) for cells in informative) <= MOST_EXACT
    null = _all_sums(informative, scores, level, levels) if exact else None
    if null is None:
        null = _random_sums(informative, scores, level, levels, np.random.default_rng(seed))
    inverse: Floats = np.linalg.pinv(_covariance(informative, scores, level, levels)).astype(float)
    observed = _statistic(_sums(informative, scores, level, levels)[None], inverse)[0]
    values = _statistic(null, inverse)
    as_large = values >= observed - 1e-9 * max(1.0, observed)
    p = float(as_large.mean()) if exact else (1 + int(as_large.sum())) / (1 + len(values))
    least = float((values >= values.max() - 1e-9).mean()) if exact else 1 / (1 + len(values))
    return LogRank(_chi2(time, happened, level, stratum, informative), p, exact, len(compared), len(informative), least)


def _chi2(time: Ints, happened: NDArray[np.bool_], level: Ints, stratum: Ints, informative: Sequence[Ints]) -> float:
    """The stratified log-rank statistic. Uninformative strata would add nothing."""
    cells = np.concatenate(informative)
    with np.errstate(all="ignore"):
        try:
            chi2, _ = survdiff(time[cells], happened[cells].astype(int), level[cells], strata=stratum[cells])
        except (ValueError, np.linalg.LinAlgError):
            return math.nan
    return float(chi2)


def _groups(stratum: Ints) -> list[Ints]:
    order = np.argsort(stratum, kind="stable")
    starts = np.flatnonzero(np.diff(stratum[order])) + 1
    return [cells for cells in np.split(order, starts) if len(cells)]


def _scores(time: Ints, happened: NDArray[np.bool_], stratum: Ints) -> Floats:
    """Observed minus expected (Nelson-Aalen) of each cell, within its stratum."""
    order = np.lexsort((time, stratum))
    own, when, met = stratum[order], time[order], happened[order].astype(float)
    begins = np.append(True, (np.diff(own) != 0) | (np.diff(when) != 0))  # a stratum's cells of one time
    first = np.flatnonzero(begins)
    at_risk = np.searchsorted(own, own[first], side="right") - first
    hazard = np.cumsum(np.add.reduceat(met, first) / at_risk)
    before = np.append(0.0, hazard)[np.searchsorted(first, np.searchsorted(own, own[first]))]
    scores = np.empty(len(time))
    scores[order] = met - (hazard - before)[np.cumsum(begins) - 1]
    return scores


def _sums(strata: Sequence[Ints], scores: Floats, level: Ints, levels: int) -> Floats:
    cells = np.concatenate(strata)
    sums: Floats = np.bincount(level[cells], scores[cells], minlength=levels).astype(float)
    return sums


def _all_sums(strata: Sequence[Ints], scores: Floats, level: Ints, levels: int) -> Floats:
    total = np.zeros((1, levels))
    for cells in strata:
        arrangements = np.array(list(itertools.permutations(scores[cells])))
        total = (total[:, None] + _by_level(arrangements, level[cells], levels)[None]).reshape(-1, levels)
    return total


def _random_sums(strata: Sequence[Ints], scores: Floats, level: Ints, levels: int, rng: np.random.Generator) -> Floats:
    total = np.zeros((RANDOM, levels))
    for size in sorted({len(cells) for cells in strata}):
        alike = np.array([cells for cells in strata if len(cells) == size])
        at_level = np.eye(levels)[level[alike]]
        for few in np.array_split(np.arange(RANDOM), math.ceil(RANDOM * alike.size / _AT_ONCE)):
            arrangements = rng.permuted(np.tile(scores[alike], (len(few), 1, 1)), axis=2)
            total[few] += np.einsum("bsc,scl->bl", arrangements, at_level)
    return total


def _by_level(arrangements: Floats, level: Ints, levels: int) -> Floats:
    return arrangements @ np.eye(levels)[level]


def _covariance(strata: Sequence[Ints], scores: Floats, level: Ints, levels: int) -> Floats:
    """Covariance of Z over permutations: per stratum of n cells, var(scores) (n diag(n_g) - n_g n_g') / (n - 1)."""
    covariance = np.zeros((levels, levels))
    for cells in strata:
        counts = np.bincount(level[cells], minlength=levels).astype(float)
        n = len(cells)
        covariance += scores[cells].var() * (n * np.diag(counts) - np.outer(counts, counts)) / (n - 1)
    return covariance


def _statistic(sums: Floats, inverse: Floats) -> Floats:
    value: Floats = np.einsum("bi,ij,bj->b", sums, inverse, sums)
    return value
