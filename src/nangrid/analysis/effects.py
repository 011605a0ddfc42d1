"""What does each factor do to the onset, everything else being equal?

Every comparison is of matched cells: equal in all other factors and in the seed, so that a design need not be
balanced. Effects are differences of the restricted mean steps survived; their intervals resample seeds within
combinations, for seeds are what was drawn at random: levels were chosen. With one seed there is no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests

from nangrid.analysis.histories import History, same_bits
from nangrid.analysis.logrank import logrank
from nangrid.analysis.survival import common_horizon, factors_of, restricted_mean

REPLICATES = 1_000
ANY = "any event"


def factor_tests(times: pd.DataFrame) -> pd.DataFrame:
    """A stratified log-rank test a factor and event, other events censoring it (cause-specific).

    factor, event, compared (sets of matched cells), strata (of them that tell levels apart), chi2,
    p (by permutation), exact, least_p, p_holm (over the factors).
    """
    rows = []
    events = [ANY, *sorted(times["event"].dropna().unique())]
    for event in events if len(events) > 2 else [ANY]:
        happened = (times["event"].notna() if event == ANY else times["event"] == event).fillna(False)
        for factor in factors_of(times):
            level = pd.factorize(times[factor], use_na_sentinel=False)[0]
            result = logrank(times["time"].to_numpy(), happened.to_numpy(bool), level, _stratum(times, [factor]))
            rows.append(
                (factor, event, result.compared, result.strata, result.chi2, result.p, result.exact, result.least_p)
            )
    table = pd.DataFrame(rows, columns=["factor", "event", "compared", "strata", "chi2", "p", "exact", "least_p"])
    table["p_holm"] = np.nan
    for _, family in table.groupby("event"):
        table.loc[family.index, "p_holm"] = multipletests(family["p"], method="holm")[1]
    return table


def contrasts(times: pd.DataFrame, base: Mapping[str, str], histories: Mapping[str, History]) -> pd.DataFrame:
    """Each level against its factor's level in `base`, over matched cells.

    factor, level, base, pairs, met, met_base (cells with any event), difference (restricted mean steps survived),
    lower, upper (null with one seed), same_bits (pairs whose histories are equal to the last bit), compared.
    """
    rows = []
    horizon = common_horizon(times)
    for factor in factors_of(times):
        for level in times[factor].unique():
            if level != base[factor]:
                corners = _matched(times, {factor: [level, base[factor]]})
                rows.append(_contrast(corners, factor, level, base[factor], horizon, histories))
    names = ["factor", "level", "base", "pairs", "met", "met_base", "difference", "lower", "upper"]
    return pd.DataFrame(rows, columns=[*names, "same_bits", "compared"])


def without_effect(contrast: pd.DataFrame) -> list[str]:
    """Factors that change no bit: every matched pair of cells has the same history."""
    by_factor = contrast.groupby("factor", sort=False)[["same_bits", "compared"]].sum()
    return [str(factor) for factor, same, compared in by_factor.itertuples() if compared and same == compared]


def interactions(times: pd.DataFrame, base: Mapping[str, str]) -> pd.DataFrame:
    """Per pair of factors the levels at which one changes most what the other does, over matched fours of cells.

    factor, level, other, other_level, fours, difference (of differences, in steps), lower, upper.
    """
    rows = []
    horizon = common_horizon(times)
    for factor, other in combinations(factors_of(times), 2):
        found = []
        for level, second in product(_others(times, factor, base), _others(times, other, base)):
            corners = _matched(times, {factor: [level, base[factor]], other: [second, base[other]]})
            if len(corners[0]):
                estimate = _estimate(corners, [1, -1, -1, 1], horizon)
                found.append((factor, level, other, second, len(corners[0]), *estimate))
        rows += sorted(found, key=lambda row: -abs(row[5]))[:1]
    names = ["factor", "level", "other", "other_level", "fours", "difference", "lower", "upper"]
    return pd.DataFrame(rows, columns=names).sort_values("difference", key=lambda d: -d.abs(), ignore_index=True)


def _contrast(
    corners: Sequence[pd.DataFrame], factor: str, level: str, base: str, horizon: int, histories: Mapping[str, History]
) -> tuple[Any, ...]:
    own, other = corners
    estimate = _estimate(corners, [1, -1], horizon) if len(own) else (np.nan, np.nan, np.nan)
    ids = [pair for pair in zip(own["cell_id"], other["cell_id"], strict=True) if all(i in histories for i in pair)]
    same = sum(same_bits(histories[a], histories[b]) for a, b in ids)
    met = [int(corner["event"].notna().sum()) for corner in corners]
    return factor, level, base, len(own), *met, *estimate, same, len(ids)


def _others(times: pd.DataFrame, factor: str, base: Mapping[str, str]) -> list[str]:
    return [level for level in times[factor].unique() if level != base[factor]]


def _matched(times: pd.DataFrame, levels: Mapping[str, Sequence[str]]) -> list[pd.DataFrame]:
    """Per corner of the levels, in the order of their product, its cells; row i of each is equal in all else."""
    unit = _stratum(times, [*levels, "seed"])
    keyed = times.assign(unit=unit, key=_stratum(times, list(levels))).set_index("key")
    corners = []
    for corner in product(*levels.values()):
        chosen = np.logical_and.reduce([keyed[factor] == level for factor, level in zip(levels, corner, strict=True)])
        corners.append(keyed[chosen])
    shared = set.intersection(*(set(cells.index) for cells in corners))
    return [cells.loc[sorted(shared)] for cells in corners]


def _stratum(times: pd.DataFrame, without: Sequence[str]) -> NDArray[np.int64]:
    """A number a combination of all columns that vary but these."""
    columns = [c for c in [*factors_of(times), "seed"] if c in times and c not in without]
    if not columns:
        return np.zeros(len(times), np.int64)
    numbers: NDArray[np.int64] = times.groupby(columns, sort=False, dropna=False).ngroup().to_numpy().astype(np.int64)
    return numbers


def _estimate(corners: Sequence[pd.DataFrame], signs: Sequence[int], horizon: int) -> tuple[float, float, float]:
    """The signed sum of the corners' restricted means, and its percentile interval; NaN ends with one seed."""
    weights = _resampled(corners[0]["unit"].to_numpy())
    once = np.ones((1, len(corners[0])))

    def total(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        means = [
            restricted_mean(corner["time"].to_numpy(), corner["event"].notna().to_numpy(bool), horizon, weights)
            for corner in corners
        ]
        return np.asarray(signs) @ np.array(means)

    estimate = float(total(once)[0])
    if weights is None:
        return estimate, np.nan, np.nan
    lower, upper = np.quantile(total(weights), [0.025, 0.975])
    return estimate, float(lower), float(upper)


def _resampled(unit: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """How often each cell is drawn in each replicate, as many of its unit as there are; None with one a unit."""
    rng = np.random.default_rng(0)
    codes, counts = np.unique(unit, return_inverse=True, return_counts=True)[1:]
    if len(unit) == 0 or counts.max() == 1:
        return None
    weights = np.ones((REPLICATES, len(unit)))
    for seeds in set(counts) - {1}:
        cells = np.flatnonzero(counts[codes] == seeds)
        cells = cells[np.argsort(codes[cells], kind="stable")]
        drawn = rng.multinomial(seeds, [1 / seeds] * seeds, size=(REPLICATES, len(cells) // seeds))
        weights[:, cells] = drawn.reshape(REPLICATES, -1)
    return weights
