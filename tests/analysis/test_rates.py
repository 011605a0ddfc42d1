"""Rates over seeds and what they could have missed."""

import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from nangrid.analysis.rates import detectable, rates, unseen, wilson

# Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
NEWCOMBE = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}


@pytest.mark.parametrize("seen", NEWCOMBE)
def test_wilson_has_the_published_ends(seen: tuple[int, int]) -> None:
    assert tuple(round(end, 4) for end in wilson(*seen)) == NEWCOMBE[seen]


def test_wilson_is_statsmodels() -> None:
    for met in range(6):
        lower, upper = proportion_confint(met, 5, method="wilson")
        assert wilson(met, 5) == pytest.approx((max(0, lower), min(1, upper)), abs=1e-9)


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
    assert (row["lower"], row["upper"]) == pytest.approx(proportion_confint(1, 2, method="wilson"))


def test_what_three_seeds_leave_open() -> None:
    assert unseen(3) == pytest.approx(0.5615, abs=1e-4)


def test_power_by_hand() -> None:
    assert detectable(6, tests=1) == 0.97  # all six pairs must turn: 0.97 ** 6 = 0.83
    assert detectable(5, tests=1) is None  # 2 * 0.5 ** 5 = 0.06
    assert detectable(40, tests=1) < detectable(20, tests=1) < 0.5  # type: ignore[operator]
