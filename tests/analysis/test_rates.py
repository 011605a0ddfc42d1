"""Rates over seeds and what they could have missed."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from statsmodels.stats.proportion import proportion_confint

from nangrid.analysis.claims import clopper_pearson
from nangrid.analysis.rates import detectable, rates, unseen

# Newcombe 1998, Statistics in Medicine 17:857, table I, method 5.
NEWCOMBE = {(81, 263): (0.2527, 0.3676), (15, 148): (0.0578, 0.1617), (0, 20): (0.0, 0.1684), (1, 29): (0.0009, 0.1776)}


@pytest.mark.parametrize("seen", NEWCOMBE)
def test_the_exact_interval_has_the_published_ends(seen: tuple[int, int]) -> None:
    assert tuple(round(end, 4) for end in clopper_pearson(*seen)) == NEWCOMBE[seen]


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_exact_interval_covers_every_rate(n: int) -> None:
    intervals = [clopper_pearson(met, n) for met in range(n + 1)]
    for rate in np.linspace(0.01, 0.99, 50):
        covered = sum(binom.pmf(met, n, rate) for met, (low, high) in enumerate(intervals) if low <= rate <= high)
        assert covered >= 0.95


def test_a_crash_is_no_seed() -> None:
    times = pd.DataFrame(
        {
            "dtype": ["fp16"] * 3,
            "seed": [0, 1, 2],
            "time": [0, 16, 4],
            "event": pd.array(["overflow", None, None], "string"),
            "flagged": [False, False, True],
        }
    )
    (row,) = rates(times).to_dict("records")
    assert (row["seeds"], row["met"], row["rate"], row["flagged"]) == (2, 1, 0.5, 1)
    assert (row["lower"], row["upper"]) == pytest.approx(proportion_confint(1, 2, method="beta"))


def test_what_three_seeds_leave_open() -> None:
    assert unseen(3) == pytest.approx(0.6316, abs=1e-4) and (1 - unseen(3)) ** 3 == pytest.approx(0.05)


def test_power_by_hand() -> None:
    assert detectable(6, tests=1) == 0.97  # all six pairs must turn: 0.97 ** 6 = 0.83
    assert detectable(5, tests=1) is None  # 2 * 0.5 ** 5 = 0.06
    assert detectable(40, tests=1) < detectable(20, tests=1) < 0.5  # type: ignore[operator]
