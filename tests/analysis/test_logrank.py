"""The stratified log-rank: its statistic against statsmodels and the textbooks, its p against counting by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.duration.survfunc import survdiff

from nangrid.analysis.logrank import _scores, _sums, logrank


def test_the_published_example(freireich: pd.DataFrame) -> None:
    cells = freireich
    result = logrank(
        cells["time"].to_numpy(),
        cells["event"].notna().to_numpy(bool),
        (cells["drug"] == "6-MP").to_numpy(int),
        np.zeros(len(cells), int),
    )
    assert result.chi2 == pytest.approx(16.79, abs=0.005)
    assert result.p < 0.001 and not result.exact


cells = st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 2), st.integers(0, 3))


@settings(deadline=None)
@given(st.lists(cells, min_size=2, max_size=40))
def test_observed_minus_expected_is_the_sum_of_scores(rows: list[tuple[int, bool, int, int]]) -> None:
    time, happened, level, stratum = (np.array(column) for column in zip(*rows, strict=True))
    everything = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    sums = _sums(everything, _scores(time, happened, stratum), level, 3)
    expected = np.zeros(3)
    for own in everything:
        for moment in np.unique(time[own][happened[own]]):
            at_risk = own[time[own] >= moment]
            met = at_risk[(time[at_risk] == moment) & happened[at_risk]]
            for group in range(3):
                expected[group] += (level[met] == group).sum()
                expected[group] -= len(met) * (level[at_risk] == group).sum() / len(at_risk)
    assert sums == pytest.approx(expected, abs=1e-9)


def test_the_statistic_is_statsmodels() -> None:
    rng = np.random.default_rng(0)
    time, happened, level = rng.integers(0, 9, 60), rng.random(60) < 0.6, rng.integers(0, 3, 60)
    stratum = rng.integers(0, 5, 60)
    expected, _ = survdiff(time, happened.astype(int), level, strata=stratum)
    assert logrank(time, happened, level, stratum).chi2 == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("pairs", [1, 4, 6, 10])
def test_pairs_that_all_agree_have_the_p_of_the_sign_test(pairs: int) -> None:
    time = np.tile([0, 16], pairs)
    result = logrank(time, time == 0, np.tile([1, 0], pairs), np.repeat(np.arange(pairs), 2))
    assert result.exact and result.strata == result.compared == pairs
    assert result.p == result.least_p == pytest.approx(min(1.0, 2 * 0.5**pairs))


def test_many_pairs_are_permuted_at_random() -> None:
    time = np.tile([0, 16], 40)
    result = logrank(time, time == 0, np.tile([1, 0], 40), np.repeat(np.arange(40), 2))
    assert not result.exact and result.p == pytest.approx(1 / 5_000)


def test_sets_in_which_all_fail_alike_tell_nothing() -> None:
    result = logrank(np.zeros(4, int), np.ones(4, bool), np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    assert result.compared == 2 and result.strata == 0 and result.p == 1.0


def test_a_level_without_counterparts_is_not_compared() -> None:
    result = logrank(np.array([0, 16]), np.array([True, False]), np.array([0, 1]), np.array([0, 1]))
    assert result.compared == 0 and result.p == 1.0


@settings(deadline=None, max_examples=30)
@given(st.lists(cells, min_size=2, max_size=12))
def test_p_is_a_probability_and_the_order_of_cells_does_not_matter(rows: list[tuple[int, bool, int, int]]) -> None:
    time, happened, level, stratum = (np.array(column) for column in zip(*rows, strict=True))
    result = logrank(time, happened, level, stratum)
    assert 0 < result.least_p <= result.p <= 1
    if result.exact:
        back = logrank(time[::-1], happened[::-1], level[::-1], stratum[::-1])
        assert back.p == pytest.approx(result.p, abs=1e-9)
