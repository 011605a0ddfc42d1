"""What could be chance, and how many more seeds would tell."""

import pytest
from scipy.stats import binom, fisher_exact

from nangrid.analysis.claims import ALPHA, Count, Grade, chance, graded, holm, more_seeds


def test_chance_holds_its_level_whatever_the_rate() -> None:
    """No rate that both groups share brings a p of at most ALPHA more often than ALPHA."""
    for rate in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9):
        rejected = 0.0
        for met in range(6):
            for without in range(6):
                likely = binom.pmf(met, 5, rate) * binom.pmf(without, 5, rate)
                rejected += likely * (chance(Count(met, 5), Count(without, 5)) <= ALPHA)
        assert rejected <= ALPHA


def test_many_runs_are_judged_by_fishers_test() -> None:
    expected = fisher_exact([[9, 3], [11, 57]], alternative="greater")[1]
    assert chance(Count(9, 20), Count(3, 60)) == pytest.approx(expected)


def test_fewer_or_no_runs_tell_nothing() -> None:
    for shown, matched in ((Count(0, 3), Count(1, 3)), (Count(3, 3), Count(0, 0)), (Count(1, 3), Count(1, 3))):
        assert chance(shown, matched) == 1.0


def test_one_of_three_seeds_needs_more_seeds() -> None:
    shown, matched = Count(1, 3), Count(0, 3)
    more = more_seeds(shown, matched, 3)
    assert more and chance(Count(round((3 + more) / 3), 3 + more), Count(0, 3 + more)) <= ALPHA
    assert graded(Grade.SEEN, more) == f"could still be chance; {more} more seeds would tell"
    assert more_seeds(Count(1, 3), Count(1, 3), 3) is None


def test_holm_lets_the_strong_claim_through() -> None:
    assert holm([0.03, 0.001, 0.5]) == [False, True, False] and holm([]) == []
