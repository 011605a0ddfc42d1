"""What a factor does, everything else being equal: by hand on small grids."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nangrid.analysis.effects import ANY, contrasts, factor_tests, interactions, without_effect
from nangrid.analysis.histories import History
from nangrid.analysis.limits import limits
from nangrid.analysis.rates import rates

BASE = {"dtype": "bf16", "init": "mean", "checkpointing": "on"}


def outcome(dtype: str, init: str, seed: int) -> tuple[int, str | None]:
    """fp16 fails at once; zero rows fail at step 4 in two of three seeds under silent_fp16."""
    if dtype == "fp16":
        return 0, "overflow"
    if dtype == "silent_fp16" and init == "zero" and seed < 2:
        return 4, "gradient"
    return 16, None


def grid(seeds: int = 3, **more: tuple[str, ...]) -> pd.DataFrame:
    factors = {"dtype": ("bf16", "silent_fp16", "fp16"), "init": ("zero", "mean")} | more
    rows = []
    for *levels, seed in product(*factors.values(), range(seeds)):
        time, event = outcome(levels[0], levels[1], seed)
        row: dict[str, Any] = dict(zip(factors, levels, strict=True)) | {"seed": seed}
        # the columns of an onset table that the analysis tells factors from
        row |= {"status": "nonfinite" if event else "finite", "cell_id": "-".join([*levels, str(seed)])}
        rows.append(row | {"time": time, "event": event, "flagged": False})
    return pd.DataFrame(rows).astype({"event": "string"})


def row_of(frame: pd.DataFrame, **wanted: str) -> dict[str, Any]:
    chosen = frame[np.logical_and.reduce([frame[key] == value for key, value in wanted.items()])]
    (row,) = chosen.to_dict("records")
    return row


def said(table: pd.DataFrame, compared: pd.DataFrame) -> list[str]:
    return limits([], table, rates(table), factor_tests(table), compared)


def test_differences_are_means_of_matched_pairs() -> None:
    table = contrasts(grid(), BASE, {})
    fp16 = row_of(table, factor="dtype", level="fp16")
    assert (fp16["pairs"], fp16["met"], fp16["met_base"]) == (6, 6, 0)
    assert fp16["difference"] == -16 and np.isnan(fp16["lower"]), "three seeds are too few for an interval"
    silent = row_of(table, factor="dtype", level="silent_fp16")
    assert silent["difference"] == pytest.approx(-12 * 2 / 6)
    assert (fp16["telling"], silent["telling"]) == (6, 6)


def test_the_interval_is_over_seeds_and_exact() -> None:
    fp16 = row_of(contrasts(grid(seeds=5), BASE, {}), factor="dtype", level="fp16")
    least = 0.025 ** (1 / 5)  # the rate at which five of five are no surprise
    assert fp16["lower"] == -16 and fp16["upper"] == pytest.approx(16 - 32 * least)


def test_pairs_that_fail_together_can_tell_nothing() -> None:
    table = grid(init=("zero", "mean"))
    assert row_of(contrasts(table, BASE, {}), factor="init", level="zero")["telling"] == 6, "3 of 9 pairs are in fp16"


def test_one_seed_has_no_interval() -> None:
    table = contrasts(grid(seeds=1), BASE, {})
    assert table["lower"].isna().all() and table["upper"].isna().all()
    sentences = said(grid(seeds=1), table)
    assert any("one seed" in s and "95%" in s for s in sentences) and any(
        "no confidence intervals" in s for s in sentences
    )


def test_an_unbalanced_design_compares_what_is_equal_in_all_else() -> None:
    table = grid()
    thin = table[~((table["dtype"] == "fp16") & (table["init"] == "mean"))]
    fp16 = row_of(contrasts(thin, BASE, {}), factor="dtype", level="fp16")
    assert fp16["pairs"] == 3 and fp16["difference"] == -16


def test_the_interaction_is_found_where_it_is() -> None:
    (row,) = interactions(grid(), BASE).to_dict("records")
    assert {row["level"], row["other_level"]} == {"silent_fp16", "zero"}
    assert row["difference"] == pytest.approx(-8) and row["fours"] == 3


def test_events_are_tested_apart_with_the_others_censoring() -> None:
    table = factor_tests(grid())
    both = row_of(table, factor="init", event="gradient")
    assert row_of(table, factor="init", event="overflow")["p"] == 1.0
    assert both["strata"] == 2 and both["p"] == both["least_p"] == 0.5
    dtype = row_of(table, factor="dtype", event=ANY)
    assert dtype["p_holm"] == pytest.approx(min(1, 2 * dtype["p"])), "Holm over two factors"


def histories(table: pd.DataFrame, differing: str) -> dict[str, History]:
    rng = np.random.default_rng(0)
    course = rng.random((16, 15))
    other = course.copy()
    other[-1, 1] = np.nextafter(other[-1, 1], 1)
    return {cell: (other if differing in cell else course) for cell in table["cell_id"]}


def test_a_no_op_is_one_by_its_bits_whatever_p_says() -> None:
    table = grid(checkpointing=("on", "off"))
    compared = contrasts(table, BASE, histories(table, "silent"))
    assert without_effect(compared) == ["init", "checkpointing"]
    sentences = said(table, compared)
    assert any(s.startswith("checkpointing has no effect: the histories of all 18 matched pairs") for s in sentences)


def test_one_bit_in_one_cell_is_an_effect() -> None:
    table = grid(checkpointing=("on", "off"))
    compared = contrasts(table, BASE, histories(table, "bf16-zero-off-0"))
    assert "checkpointing" not in without_effect(compared)
    assert row_of(compared, factor="checkpointing", level="off")["same_bits"] == 17


def test_a_level_that_nothing_is_matched_with_is_said() -> None:
    table = grid()
    alone = table[table["dtype"] != "fp16"].assign(optim="sgd")
    table = pd.concat([table.assign(optim="adamw_torch"), alone[alone["init"] == "zero"].assign(init="normal")])
    base = BASE | {"optim": "adamw_torch"}
    compared = contrasts(table, base, {})
    assert row_of(compared, factor="optim", level="sgd")["pairs"] == 0
    sentences = said(table, compared)
    assert "optim=sgd has no matching run, so its effect cannot be separated." in sentences


def test_the_power_of_the_design_is_stated() -> None:
    table = grid(seeds=1)
    sentences = said(table, contrasts(table, BASE, {}))
    assert any(s.startswith("init: 2 matched pairs that can tell are too few") for s in sentences)
    table = grid(seeds=5)
    sentences = said(table, contrasts(table, BASE, {}))
    assert any(
        s.startswith("init: with 10 matched pairs of runs that can tell") and "80% power" in s for s in sentences
    )
    assert not any(s.startswith("dtype: ") for s in sentences), "fp16 always fails, and that is sure"


def test_a_pair_that_fails_before_its_first_update_shows_no_no_op() -> None:
    table = grid(checkpointing=("on", "off"))
    course = np.full((1, 15), np.nan)
    compared = contrasts(table, BASE, dict.fromkeys(table["cell_id"], course))
    assert without_effect(compared) == []
