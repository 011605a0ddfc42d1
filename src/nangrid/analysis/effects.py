"""Measures the effect of each factor on the onset, everything else being equal.

Every comparison is of matched cells: equal in all other factors and in the seed, so that a design need not be
balanced. Effects are differences of the restricted mean steps survived. Their intervals are over seeds, because only
seeds were drawn at random: levels were chosen. With fewer than LEAST_SEEDS seeds there is no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests

from nangrid.analysis.claims import clopper_pearson
from nangrid.analysis.histories import History, past_an_update, same_bits
from nangrid.analysis.logrank import logrank
from nangrid.analysis.survival import common_horizon, factors_of, restricted_mean

LEAST_SEEDS = 5
ANY = "any event"

Ints = NDArray[np.int64]
Estimate = tuple[float, float, float]


def factor_tests(times: pd.DataFrame) -> pd.DataFrame:
    """One stratified log-rank test per factor and event, with other events as censoring (cause-specific).

    factor, event, compared (sets of matched cells), strata (those in which the levels differ), chi2,
    p (by permutation), exact, least_p, p_holm (over the factors).
    """
    rows = []
    matching = _Matching(times)
    events = [ANY, *sorted(times["event"].dropna().unique())]
    for event in events if len(events) > 2 else [ANY]:
        happened = (times["event"].notna() if event == ANY else times["event"] == event).fillna(False).to_numpy(bool)
        for factor in matching.factors:
            result = logrank(matching.time, happened, matching.codes[factor], matching.stratum([factor]))
            rows.append(
                (factor, event, result.compared, result.strata, result.chi2, result.p, result.exact, result.least_p)
            )
    table = pd.DataFrame(rows, columns=["factor", "event", "compared", "strata", "chi2", "p", "exact", "least_p"])
    table["p_holm"] = np.nan
    for _, family in table.groupby("event"):
        table.loc[family.index, "p_holm"] = multipletests(family["p"], method="holm")[1]
    return table


def contrasts(times: pd.DataFrame, base: Mapping[str, str], histories: Mapping[str, History]) -> pd.DataFrame:
    """One row per level other than the one in `base`, compared with that one over matched cells.

    factor, level, base, pairs, telling (of them those in which not both cells fail at the same step), met, met_base
    (cells with any event), difference (restricted mean steps survived), lower, upper (null with few seeds), same_bits
    (pairs whose histories are equal to the last bit), compared (pairs with histories), updated (of them those that got
    past their first update).
    """
    rows = []
    matching = _Matching(times)
    for factor in matching.factors:
        for level in matching.others(factor, base):
            changed, unchanged = corners = matching.corners({factor: [level, base[factor]]})
            ids = [(matching.ids[a], matching.ids[b]) for a, b in zip(changed, unchanged, strict=True)]
            known = [(a, b) for a, b in ids if a in histories and b in histories]
            same = sum(same_bits(histories[a], histories[b]) for a, b in known)
            updated = sum(past_an_update(histories[a]) and past_an_update(histories[b]) for a, b in known)
            met = [int(matching.happened[cells].sum()) for cells in corners]
            telling = matching.telling(changed, unchanged)
            estimate = matching.estimate(corners, [1, -1])
            rows.append(
                (factor, level, base[factor], len(changed), telling, *met, *estimate, same, len(known), updated)
            )
    names = ["factor", "level", "base", "pairs", "telling", "met", "met_base", "difference", "lower", "upper"]
    return pd.DataFrame(rows, columns=[*names, "same_bits", "compared", "updated"])


def without_effect(contrast: pd.DataFrame) -> list[str]:
    """Factors that change no bit: all matched pairs have equal histories, and some pair got past its first update."""
    by_factor = contrast.groupby("factor", sort=False)[["same_bits", "compared", "updated"]].sum()
    return [str(factor) for factor, same, compared, updated in by_factor.itertuples() if updated and same == compared]


def interactions(times: pd.DataFrame, base: Mapping[str, str]) -> pd.DataFrame:
    """One row per pair of factors: the levels with the strongest interaction, over matched quadruples of cells.

    factor, level, other, other_level, fours, difference (of differences, in steps), lower, upper.
    """
    rows = []
    matching = _Matching(times)
    for factor, other in combinations(matching.factors, 2):
        estimates = []
        for level, second in product(matching.others(factor, base), matching.others(other, base)):
            corners = matching.corners({factor: [level, base[factor]], other: [second, base[other]]})
            if len(corners[0]):
                estimate = matching.estimate(corners, [1, -1, -1, 1])
                estimates.append((factor, level, other, second, len(corners[0]), *estimate))
        rows += sorted(estimates, key=lambda row: -abs(row[5]))[:1]
    names = ["factor", "level", "other", "other_level", "fours", "difference", "lower", "upper"]
    return pd.DataFrame(rows, columns=names).sort_values("difference", key=lambda d: -d.abs(), ignore_index=True)


class _Matching:
    """The cells of a grid as arrays, matched where they are equal in all but some factors."""

    def __init__(self, times: pd.DataFrame) -> None:
        self.factors = factors_of(times)
        self.horizon = common_horizon(times)
        self.time = times["time"].to_numpy(np.int64)
        self.happened = times["event"].notna().to_numpy(bool)
        self.ids = times["cell_id"].tolist()
        self.levels: dict[str, list[str]] = {}
        self.codes: dict[str, Ints] = {}
        for factor in [*self.factors, *(["seed"] if "seed" in times else [])]:
            codes, levels = pd.factorize(times[factor], use_na_sentinel=False)
            self.codes[factor], self.levels[factor] = codes.astype(np.int64), [str(level) for level in levels]

    def others(self, factor: str, base: Mapping[str, str]) -> list[str]:
        """The factor's levels other than the one in `base`."""
        return [level for level in self.levels[factor] if level != base[factor]]

    def stratum(self, without: Sequence[str]) -> Ints:
        """Per cell, the number of its combination of seed and factors, without these factors."""
        number = np.zeros(len(self.time), np.int64)
        for factor, codes in self.codes.items():
            if factor not in without:
                number = np.unique(number * len(self.levels[factor]) + codes, return_inverse=True)[1]
        return number

    def corners(self, levels: Mapping[str, Sequence[str]]) -> list[Ints]:
        """The cells of each corner of the levels, in the order of their product: all i-th cells are matched."""
        stratum = self.stratum(list(levels))
        cells = []
        for chosen in product(*levels.values()):
            wanted = [self._index(factor, level) for factor, level in zip(levels, chosen, strict=True)]
            at = [self.codes[factor] == code for factor, code in zip(levels, wanted, strict=True)]
            cells.append(np.flatnonzero(np.logical_and.reduce(at)))
        shared = set.intersection(*(set(stratum[corner]) for corner in cells))
        matched = [corner[np.isin(stratum[corner], list(shared))] for corner in cells]
        return [corner[np.argsort(stratum[corner], kind="stable")] for corner in matched]

    def telling(self, cells: Ints, others: Ints) -> int:
        """The matched pairs that can tell two levels apart: not both cells fail, or they fail at different steps."""
        alike = self.happened[cells] & self.happened[others] & (self.time[cells] == self.time[others])
        return int((~alike).sum())

    def _index(self, factor: str, level: str) -> int:
        return self.levels[factor].index(level) if level in self.levels[factor] else -1

    def estimate(self, corners: Sequence[Ints], signs: Sequence[int]) -> Estimate:
        """The signed sum of the corners' restricted means, and its 95 % interval over seeds: NaN with few of them."""
        if not len(corners[0]):
            return np.nan, np.nan, np.nan
        means = [restricted_mean(self.time[c], self.happened[c], self.horizon) for c in corners]
        difference = float((np.asarray(signs) @ np.array(means))[0])
        seeds = self.codes.get("seed", np.zeros(len(self.time), np.int64))[corners[0]]
        watched = np.logical_and.reduce([self.happened[c] | (self.time[c] >= self.horizon) for c in corners])
        if len(set(seeds[watched])) < LEAST_SEEDS:
            return difference, np.nan, np.nan
        signed = np.asarray(signs) @ np.array([np.minimum(self.time[c], self.horizon) for c in corners])
        of_seeds = [float(signed[watched & (seeds == seed)].mean()) for seed in sorted(set(seeds[watched]))]
        # the most that the sum can be, up or down: as shares of that range the values of seeds lie in 0..1
        most = self.horizon * len(signs) / 2
        shares = [(value + most) / (2 * most) for value in of_seeds]
        lower, upper = clopper_pearson(sum(shares), len(shares))
        return difference, 2 * most * lower - most, 2 * most * upper - most
