"""What can these records and this design not tell?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from nangrid.analysis.effects import ANY, without_effect
from nangrid.analysis.onsets import level_name, varying_factors
from nangrid.analysis.rates import ALPHA, POWER, detectable, unseen
from nangrid.records.cell import START_FROM, CellRecord

MACHINE = ("device", "cpu", "cpu_capability")
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
"""What of an environment decides bits."""


def limits(
    records: Sequence[CellRecord],
    times: pd.DataFrame,
    rates: pd.DataFrame,
    tested: pd.DataFrame,
    compared: pd.DataFrame,
) -> list[str]:
    """Sentences a reader must know before acting on the numbers; the tables are those of rates and effects."""
    return [
        *_mixed(records),
        *_gone_on_with(records),
        *_flagged(times),
        *_horizons(records),
        *_no_ops(compared),
        *_seeds(rates),
        *_power(tested, compared),
    ]


def _mixed(records: Sequence[CellRecord]) -> list[str]:
    lines = []
    for keys, what in ((MACHINE, "kinds of machine"), (PACKAGES, "sets of package versions")):
        kinds = sorted({" ".join(str(record.environment.get(key, "?")) for key in keys) for record in records})
        if len(kinds) > 1:
            lines.append(f"The cells ran on {len(kinds)} {what} ({'; '.join(kinds)}): bits differ between them.")
    return lines


def _gone_on_with(records: Sequence[CellRecord]) -> list[str]:
    """Which cells began in the middle of a run: nothing is known of what their levels do before."""
    lines = []
    for run, step in sorted({(str(r.factors[START_FROM]), r.first_step) for r in records if r.first_step}):
        cells = [r for r in records if r.factors.get(START_FROM) == run]
        table = varying_factors([r.factors for r in cells])
        tried = "; ".join(f"{factor}: {', '.join(map(level_name, table[factor].unique()))}" for factor in table)
        lines.append(
            f"{len(cells)} cells go on with one run ({run}) from its step {step} ({tried or 'as it was'}): steps count "
            "from there, and what these levels do before it is not asked."
        )
    return lines


def _flagged(times: pd.DataFrame) -> list[str]:
    flagged = int(times["flagged"].sum())
    if not flagged:
        return []
    return [f"Cells that crashed or ran out of time: {flagged}, censored where they stopped; resume=errored runs them."]


def _horizons(records: Sequence[CellRecord]) -> list[str]:
    horizons = sorted({record.horizon for record in records if record.status == "finite"})
    if len(horizons) < 2:
        return []
    return [
        f"Finite cells have horizons from {horizons[0]} to {horizons[-1]}: steps survived count up to {horizons[0]}."
    ]


def _no_ops(compared: pd.DataFrame) -> list[str]:
    lines = []
    for factor in without_effect(compared):
        pairs = int(compared.loc[compared["factor"] == factor, "compared"].sum())
        lines.append(
            f"{factor} changes no bit: all {pairs} matched pairs of cells have equal histories. It is a no-op."
        )
    lonely = compared[compared["pairs"] == 0]
    for factor, level in zip(lonely["factor"], lonely["level"], strict=True):
        lines.append(f"{factor}={level} has no cell that is equal in all else: its effect is not told apart.")
    return lines


def _seeds(rates: pd.DataFrame) -> list[str]:
    whole = rates.loc[rates["flagged"] == 0, "seeds"]
    seeds = int(whole.min()) if len(whole) else 0
    if seeds == 0:
        return []
    what = "one seed" if seeds == 1 else f"{seeds} seeds"
    lines = [f"A combination has {what}: one that never failed may still fail in up to {unseen(seeds):.0%} of runs."]
    if seeds == 1:
        lines.append("With one seed there are no intervals: run seed=0,1,2 to have them.")
    return lines


def _power(tested: pd.DataFrame, compared: pd.DataFrame) -> list[str]:
    """Of two levels; where a factor has more, of the two that the fewest matched pairs compare."""
    lines = []
    family = tested[tested["event"] == ANY]
    for factor, least_p in zip(family["factor"], family["least_p"], strict=True):
        pairs = int(compared.loc[compared["factor"] == factor, "pairs"].min())
        share = detectable(pairs, len(family))
        if share is not None:
            lines.append(
                f"{factor}: with {pairs} matched pairs of cells, a level that turns {share:.0%} of them is found with "
                f"a power of {POWER:.0%} (p < {ALPHA}, Holm over {len(family)} factors)."
            )
        elif least_p * len(family) > ALPHA:
            lines.append(
                f"{factor}: {pairs} matched pairs of cells are too few for p < {ALPHA} (Holm over {len(family)} "
                "factors): read the cells, not the p."
            )
    return lines
