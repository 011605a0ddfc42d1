"""States what these records and this design cannot show."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from nangrid.analysis.claims import ALPHA
from nangrid.analysis.effects import ANY, LEAST_SEEDS, without_effect
from nangrid.analysis.onsets import level_name, varying_factors
from nangrid.analysis.rates import POWER, detectable, unseen
from nangrid.analysis.survival import common_horizon
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
    """Sentences that a reader must know before acting on the numbers; the tables come from rates and effects."""
    return [
        *_mixed(records),
        *_resumed(records),
        *_flagged(times),
        *_horizons(records, times),
        *_no_ops(compared),
        *_seeds(rates),
        *_power(tested, compared),
    ]


def _mixed(records: Sequence[CellRecord]) -> list[str]:
    lines = []
    for keys, what in ((MACHINE, "kinds of machine"), (PACKAGES, "sets of package versions")):
        kinds = sorted({" ".join(str(record.environment.get(key, "?")) for key in keys) for record in records})
        if len(kinds) > 1:
            lines.append(f"The cells ran on {len(kinds)} {what} ({'; '.join(kinds)}): bits may differ between them.")
    return lines


def _resumed(records: Sequence[CellRecord]) -> list[str]:
    """Cells that began in the middle of a run: the effect of their levels before that is not known."""
    lines = []
    for run, step in sorted({(str(r.factors[START_FROM]), r.first_step) for r in records if r.first_step}):
        cells = [r for r in records if r.factors.get(START_FROM) == run]
        table = varying_factors([r.factors for r in cells])
        tried = "; ".join(f"{factor}: {', '.join(map(level_name, table[factor].unique()))}" for factor in table)
        lines.append(
            f"{len(cells)} cells resume run {run} at step {step} ({tried or 'unchanged'}). Steps count from there; "
            "earlier effects of these levels are not tested."
        )
    return lines


def _flagged(times: pd.DataFrame) -> list[str]:
    flagged = int(times["flagged"].sum())
    if not flagged:
        return []
    runs = "1 run" if flagged == 1 else f"{flagged} runs"
    return [f"{runs} crashed or timed out; survival is censored where it stopped. Rerun with resume=errored."]


def _horizons(records: Sequence[CellRecord], times: pd.DataFrame) -> list[str]:
    steps = sorted(record.steps_done for record in records if record.status == "finite")
    if not steps or steps[0] == steps[-1]:
        return []
    common = common_horizon(times)
    short = sum(done < common for done in steps)
    stopped = f"; {short} of them stopped earlier and {'is' if short == 1 else 'are'} censored there" if short else ""
    return [f"Finite cells ran for {steps[0]} to {steps[-1]} steps{stopped}. Survival is compared to step {common}."]


def _no_ops(compared: pd.DataFrame) -> list[str]:
    lines = []
    for factor in without_effect(compared):
        pairs = int(compared.loc[compared["factor"] == factor, "compared"].sum())
        lines.append(
            f"{factor} has no effect: the histories of all {pairs} matched pairs of cells are equal to the last bit."
        )
    lonely = compared[compared["pairs"] == 0]
    for factor, level in zip(lonely["factor"], lonely["level"], strict=True):
        lines.append(f"{factor}={level} has no matching run, so its effect cannot be separated.")
    return lines


def _seeds(rates: pd.DataFrame) -> list[str]:
    whole = rates.loc[rates["flagged"] == 0, "seeds"]
    seeds = int(whole.min()) if len(whole) else 0
    if seeds == 0:
        return []
    what = "one seed" if seeds == 1 else f"{seeds} seeds"
    lines = [
        f"Each combination ran with {what}: one that never failed may still fail in up to {unseen(seeds):.0%} of runs "
        "(one-sided 95% bound)."
    ]
    if seeds < LEAST_SEEDS:
        lines.append(f"Effects have no confidence intervals with fewer than {LEAST_SEEDS} seeds: run seed=0,1,2,3,4.")
    return lines


def _power(tested: pd.DataFrame, compared: pd.DataFrame) -> list[str]:
    """Power of each factor's test that decided nothing, for the two levels with the fewest matched pairs."""
    lines = []
    family = tested[tested["event"] == ANY]
    undecided = family[~(family["p_holm"] <= ALPHA)]
    for factor, least_p in zip(undecided["factor"], undecided["least_p"], strict=True):
        pairs = int(compared.loc[compared["factor"] == factor, "telling"].min())
        share = detectable(pairs, len(family))
        if share is not None:
            lines.append(
                f"{factor}: with {pairs} matched pairs of runs that can tell, an effect that changes {share:.0%} of "
                f"them would be detected with {POWER:.0%} power (p < {ALPHA}, Holm over {len(family)} factors)."
            )
        elif least_p * len(family) > ALPHA:
            lines.append(
                f"{factor}: {pairs} matched {'pair that can tell is' if pairs == 1 else 'pairs that can tell are'} too "
                f"few for a test (p < {ALPHA}, Holm over {len(family)} factors): look at the runs instead."
            )
    return lines
