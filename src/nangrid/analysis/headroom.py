"""Finds which module would overflow in which float format, and when, from the headroom samples of a cell."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import linregress

from nangrid.records.headroom import LIMITS

_MIN_SAMPLES = 4
"""A fit through fewer points is meaningless."""
_SIGNIFICANT = 0.01
"""The p below which a slope counts as growth."""


def room(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per module and kind, the least headroom first.

    order, module, kind, absmax, step, position, text, and one column per format: log2(limit / absmax), the bits left.
    """
    size = frame["absmax"].fillna(np.inf)  # NaN came out of an overflow, and pandas finds no maximum among NaN alone
    largest = frame.loc[size.groupby([frame["module"], frame["kind"]]).idxmax()]
    with np.errstate(divide="ignore"):
        bits = {name: np.log2(limit / largest["absmax"]) for name, limit in LIMITS.items()}
    columns = ["order", "module", "kind", "absmax", "step", "position", "text"]
    return largest[columns].assign(**bits).sort_values("fp16", kind="stable", ignore_index=True)


def first_overflow(frame: pd.DataFrame, limit: float = LIMITS["fp16"]) -> pd.Series | None:
    """The sample that would overflow first; None if all stay below the limit.

    The earliest step comes first; within it activations in forward order, then gradients in backward order.
    """
    above = frame[(frame["absmax"] > limit) | frame["absmax"].isna()]
    if above.empty:
        return None
    backward = above["kind"] == "gradient"
    order = above["order"].where(~backward, above["order"].max() + 1 + above["order"].max() - above["order"])
    first = above.assign(when=order).sort_values(["step", "when"], kind="stable").iloc[0]
    return first.drop("when")


def in_fp16(frame: pd.DataFrame) -> str:
    """What would overflow first, in a sentence."""
    first = first_overflow(frame)
    if first is None:
        return "No sampled value would overflow in fp16."
    token = f" at {first['text']!r}, position {first['position']}" if first["position"] >= 0 else ""
    what = f"the {first['kind']} of {first['module']} in step {first['step']} ({first['absmax']:.3g}{token})"
    return f"In fp16 the first to overflow, in the order of the forward pass, would be {what}."


def forecast(frame: pd.DataFrame, limit: float = LIMITS["fp16"]) -> pd.DataFrame:
    """Modules that grow towards the limit: module, kind, absmax, doubles_in (steps), reaches_at (step), r2, looks.

    A straight line is fitted to log2(absmax) by step. Only significant positive slopes (p < 0.01) of modules still
    below the limit count. The soonest comes first. `looks` is the number of samples.
    """
    rows = []
    for (module, kind), samples in frame.groupby(["module", "kind"]):
        sized = samples[np.isfinite(samples["absmax"]) & (samples["absmax"] > 0)]
        if len(sized) < _MIN_SAMPLES or sized["absmax"].max() > limit:
            continue
        fit = linregress(sized["step"], np.log2(sized["absmax"]))
        if fit.slope > 0 and fit.pvalue < _SIGNIFICANT:
            reaches = (np.log2(limit) - fit.intercept) / fit.slope
            rows.append((module, kind, sized["absmax"].iloc[-1], 1 / fit.slope, reaches, fit.rvalue**2, len(sized)))
    names = ["module", "kind", "absmax", "doubles_in", "reaches_at", "r2", "looks"]
    return pd.DataFrame(rows, columns=names).sort_values("reaches_at", ignore_index=True)
