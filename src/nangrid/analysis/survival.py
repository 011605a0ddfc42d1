"""Estimates how many steps cells survive before their onset, and which event ends them.

An onset is a right-censored time: a cell that is finite at its horizon has survived at least that long. Steps are
whole, so a time is the number of steps survived: an onset at step 0 is time 0. Curves pool all cells of a level; the
effect of a level, everything else being equal, is in nangrid.analysis.effects.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from statsmodels.duration.survfunc import CumIncidenceRight, SurvfuncRight

from nangrid.analysis.claims import clopper_pearson
from nangrid.analysis.onsets import factor_columns, level_name
from nangrid.records.mechanisms import INFINITE_NORM_FREEZE

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def durations(table: pd.DataFrame) -> pd.DataFrame:
    """An onset table with `time`, `event` (a mechanism, null where censored) and `flagged` (crash or timeout).

    A crash or timeout counts as censored at its last step. The event of a frozen cell happens at the step from which
    it is frozen; one that crashed later is a crash. Levels become text, as a user types them.
    """
    levels = {factor: table[factor].map(level_name) for factor in factor_columns(table) if factor != "seed"}
    unexplained = "unexplained " + table["onset_clock"]
    event = table["mechanism"].fillna(unexplained).where(table["status"] == "nonfinite")
    flagged = table["status"].isin(["error", "timeout"])
    frozen = event.isna() & table["frozen_from"].notna() & ~flagged
    event = event.mask(frozen, INFINITE_NORM_FREEZE)
    time = table["steps_survived"].where(~frozen, table["frozen_from"] - table["first_step"]).astype("int64")
    return table.assign(**levels, time=time, event=event.astype("string"), flagged=flagged)


def factors_of(times: pd.DataFrame) -> list[str]:
    """The factors of a table of durations; the seed is a replicate, not a factor."""
    return [c for c in factor_columns(times) if c not in ("seed", "time", "event", "flagged")]


def common_horizon(times: pd.DataFrame) -> int:
    """Steps for which half of the finite cells or more were watched. A shorter one is censored where it stopped."""
    finite = times.loc[times["event"].isna() & ~times["flagged"], "time"].sort_values()
    return int(finite.iloc[(len(finite) - 1) // 2]) if len(finite) else int(times["time"].max()) + 1


def restricted_mean(time: Floats, happened: Bools, horizon: int, weights: Floats | None = None) -> Floats:
    """Mean steps survived up to the horizon: the area under the Kaplan-Meier curve, one value per row of weights.

    `weights` is (replicates, cells); by default every cell counts once. Where nothing is censored before the
    horizon the area is the mean of min(time, horizon).
    """
    weights = np.ones((1, len(time))) if weights is None else weights
    moments = np.unique(time[happened & (time < horizon)])
    at_risk = weights @ (time[:, None] >= moments).astype(float)
    met = weights @ ((time[:, None] == moments) & happened[:, None]).astype(float)
    surviving = np.cumprod(1 - np.divide(met, at_risk, out=np.zeros_like(met), where=at_risk > 0), axis=1)
    before = np.hstack([np.ones((len(weights), 1)), surviving])
    widths = np.diff(np.concatenate([[0], moments, [horizon]]))
    area: Floats = before @ widths
    return area


def survival_curves(times: pd.DataFrame, factor: str) -> pd.DataFrame:
    """Kaplan-Meier per level: level, time, survival, lower, upper (exact 95 % interval), at_risk, censored.

    One row per time with an event or a censored cell, with the number censored there, and one for time 0.
    """
    rows = []
    for level, cells in times.groupby(factor, sort=False, dropna=False):
        with np.errstate(all="ignore"):  # Greenwood's sum divides by zero where the curve reaches it
            curve = SurvfuncRight(cells["time"].to_numpy(), cells["event"].notna().to_numpy(int))
        censored = cells.loc[cells["event"].isna(), "time"].value_counts()
        surviving = pd.Series(curve.surv_prob, index=curve.surv_times)
        error = pd.Series(curve.surv_prob_se, index=curve.surv_times)
        for moment in sorted({0, *surviving.index, *censored.index}):
            until = surviving.loc[:moment]
            survival = float(until.iloc[-1]) if len(until) else 1.0
            spread = float(error.loc[:moment].iloc[-1]) if len(until) else 0.0
            at_risk = int((cells["time"] >= moment).sum())
            lower, upper = _interval(survival, spread, len(cells) if survival == 0 else at_risk)
            rows.append((level, moment, survival, lower, upper, at_risk, int(censored.get(moment, 0))))
    return pd.DataFrame(rows, columns=["level", "time", "survival", "lower", "upper", "at_risk", "censored"])


def incidence(times: pd.DataFrame, factor: str) -> pd.DataFrame:
    """One row per level and event: the cells that end in it, and their share by the end, other events competing.

    level, cells, event, met, share (Aalen-Johansen).
    """
    events = sorted(times["event"].dropna().unique())
    codes = times["event"].map({event: number for number, event in enumerate(events, 1)}).fillna(0).astype(int)
    rows = []
    for level, cells in times.groupby(factor, sort=False, dropna=False):
        kinds = codes.loc[cells.index].to_numpy()
        present = [int(kind) for kind in np.unique(kinds) if kind]
        # statsmodels numbers the events it finds: 1, 2, ... without gaps
        gapless = np.searchsorted([0, *present], kinds)
        with np.errstate(all="ignore"):
            shares = CumIncidenceRight(cells["time"].to_numpy(), gapless).cinc if present else []
        by_event = dict(zip(present, (float(share[-1]) for share in shares), strict=True))
        for number, event in enumerate(events, 1):
            rows.append((level, len(cells), event, int((kinds == number).sum()), by_event.get(number, 0.0)))
    return pd.DataFrame(rows, columns=["level", "cells", "event", "met", "share"])


def _interval(survival: float, error: float, cells: int) -> tuple[float, float]:
    """Clopper and Pearson's interval, for as many cells as would give Greenwood's error without censoring."""
    effective = survival * (1 - survival) / error**2 if error > 0 else cells
    return clopper_pearson(survival * effective, effective)
