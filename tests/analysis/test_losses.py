"""Losses are compared additively: negative ones and zero too."""

import math

import pytest

from nangrid.analysis.losses import late_loss, no_worse, tolerance


@pytest.mark.parametrize("level", [3.0, 0.0, -3.0])
def test_a_loss_within_the_spread_of_the_seeds_is_no_worse(level: float) -> None:
    allowed = tolerance([level - 0.2, level, level + 0.2])
    assert no_worse(level + 0.1, level, allowed) and no_worse(level - 5, level, allowed)
    assert not no_worse(level + 1, level, allowed)


def test_one_seed_allows_five_percent_of_the_size() -> None:
    assert tolerance([4.0]) == pytest.approx(0.2) == tolerance([-4.0])
    assert no_worse(-3.9, -4.0, 0.2) and not no_worse(-3.7, -4.0, 0.2)


def test_no_loss_is_worse_than_any() -> None:
    assert late_loss([1.0, math.nan], 2) == late_loss([], 0) == math.inf
    assert not no_worse(math.inf, 3.0, 1.0) and tolerance([math.inf]) == 0.0
