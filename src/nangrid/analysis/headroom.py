"""Which module would overflow in which float format, and when will it? From what a cell saw of its own steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import linregress

from nangrid.records.headroom import LIMITS

_LOOKS = 4
"""A fit through fewer points says nothing."""
_SURE = 0.01
"""The p of a slope that is called growth."""


def room(frame: pd.DataFrame) -> pd.DataFrame:
    """Per module and kind, the least headroom first.

    order, module, kind, absmax, step, position, text, and a column a format with the bits left: log2(limit / absmax).
    """
    largest = frame.loc[frame.groupby(["module", "kind"])["absmax"].idxmax()]
    with np.errstate(divide="ignore"):
        bits = {name: np.log2(limit / largest["absmax"]) for name, limit in LIMITS.items()}
    columns = ["order", "module", "kind", "absmax", "step", "position", "text"]
    return largest[columns].assign(**bits).sort_values("fp16", kind="stable", ignore_index=True)


def first_overflow(frame: pd.DataFrame, limit: float = LIMITS["fp16"]) -> pd.Series | None:
    """What would overflow first: in the earliest step, activations in the order of the forward pass, then gradients.

    The row of the frame; None if all stays below the limit.
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
    return f"In fp16 the first to overflow would be {what}."


def forecast(frame: pd.DataFrame, limit: float = LIMITS["fp16"]) -> pd.DataFrame:
    """Modules that grow towards the limit: module, kind, absmax, doubles_in (steps), reaches_at (step), r2, looks.

    A straight line through log2(absmax) by step; only slopes above 0 that are sure (p < 0.01), and what is not past
    the limit yet. The soonest first.
    """
    rows = []
    for (module, kind), looks in frame.groupby(["module", "kind"]):
        seen = looks[np.isfinite(looks["absmax"]) & (looks["absmax"] > 0)]
        if len(seen) < _LOOKS or seen["absmax"].max() > limit:
            continue
        fit = linregress(seen["step"], np.log2(seen["absmax"]))
        if fit.slope > 0 and fit.pvalue < _SURE:
            reaches = (np.log2(limit) - fit.intercept) / fit.slope
            rows.append((module, kind, seen["absmax"].iloc[-1], 1 / fit.slope, reaches, fit.rvalue**2, len(seen)))
    names = ["module", "kind", "absmax", "doubles_in", "reaches_at", "r2", "looks"]
    return pd.DataFrame(rows, columns=names).sort_values("reaches_at", ignore_index=True)
