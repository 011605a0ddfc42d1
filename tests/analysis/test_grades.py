"""What noise does to a verdict: nothing false is proven, and what is true is kept."""

from collections.abc import Callable
from itertools import product
from random import Random

import pytest

from nangrid.analysis.causes import Grid, format_levels
from nangrid.records.cell import CellRecord

MakeRecord = Callable[..., CellRecord]

LEVELS = {"dtype": ("bf16", "fp16"), "init": ("mean", "zero"), "optim": ("adamw", "sgd", "lion"), "lr": ("low", "high")}


def noisy(make_record: MakeRecord, seeds: int, guilty: float, others: float, number: int) -> Grid:
    """A grid in which fp16 with zero rows fails in a share `guilty` of runs, and any other run in a share `others`."""
    rng, records = Random(f"{seeds} {guilty} {others} {number}"), []
    for place, (levels, seed) in enumerate(product(product(*LEVELS.values()), range(seeds))):
        rate = guilty if levels[:2] == ("fp16", "zero") else others
        rung = {"loss": 0} if rng.random() < rate else None
        factors = dict(zip(LEVELS, levels, strict=True)) | {"seed": seed}
        records.append(make_record(rung, cell_id=f"{place:012x}", factors=factors))
    return Grid(records, {})


def proven(grid: Grid) -> tuple[list[str], int]:
    """The causes, and the number of cures."""
    verdicts = grid.event_verdicts(grid.reference) if grid.reference else []
    causes = [format_levels(cause.levels) for verdict in verdicts for cause in verdict.causes]
    return causes, sum(len(cures) for verdict in verdicts for cures in verdict.cures.values())


@pytest.mark.parametrize("number", range(3))
def test_where_no_factor_acts_nothing_is_proven(make_record: MakeRecord, number: int) -> None:
    assert proven(noisy(make_record, 3, 0.05, 0.05, number)) == ([], 0)


@pytest.mark.parametrize("others", [0.0, 0.03])
def test_a_cause_that_acts_in_two_of_three_runs_is_proven(make_record: MakeRecord, others: float) -> None:
    causes, cures = proven(noisy(make_record, 5, 0.67, others, 0))
    assert causes == ["dtype=fp16 init=zero"] and cures > 0


def test_with_one_seed_what_other_runs_contradict_is_only_seen(make_record: MakeRecord) -> None:
    """One fp16 run failed, and the five others did not."""
    records = []
    for place, levels in enumerate(product(*LEVELS.values())):
        fails = levels == ("fp16", "mean", "adamw", "low")
        factors = dict(zip(LEVELS, levels, strict=True)) | {"seed": 0}
        records.append(make_record({"loss": 0} if fails else None, cell_id=f"{place:012x}", factors=factors))
    grid = Grid(records, {})
    assert grid.reference and proven(grid) == ([], 0)
    assert [len(verdict.seen) for verdict in grid.event_verdicts(grid.reference)] == [1]


@pytest.mark.parametrize("number", [4, 6, 9])
def test_what_another_event_always_follows_is_no_rule(make_record: MakeRecord, number: int) -> None:
    """A loss fails by chance; every other fp16 run fails in its parameters, so that all that tell had the loss."""
    rng, records = Random(number), []
    for place, (levels, seed) in enumerate(product(product(*LEVELS.values()), range(3))):
        rung = {"loss": 0} if rng.random() < 0.15 else {"parameter": 2} if "fp16" in levels else None
        factors = dict(zip(LEVELS, levels, strict=True)) | {"seed": seed}
        records.append(make_record(rung, cell_id=f"{place:012x}", factors=factors))
    assert proven(Grid(records, {}))[0] == ["dtype=fp16"], "of the parameters"


@pytest.mark.parametrize("number", [15, 24])
def test_to_fail_less_often_is_no_cure(make_record: MakeRecord, number: int) -> None:
    """Zero rows always fail, fp16 in two of three runs: without zero rows fp16 fails less often, and does not train."""
    rng, records = Random(number), []
    for place, (levels, seed) in enumerate(product(product(*LEVELS.values()), range(3))):
        half = "fp16" in levels and rng.random() < 0.67
        rung = {"loss": 0} if half else {"parameter": 2} if "zero" in levels else None
        factors = dict(zip(LEVELS, levels, strict=True)) | {"seed": seed}
        records.append(make_record(rung, cell_id=f"{place:012x}", factors=factors))
    grid = Grid(records, {})
    assert grid.reference is not None
    cured = [c.proof for v in grid.event_verdicts(grid.reference) for cures in v.cures.values() for c in cures]
    assert cured and not any(("dtype", "fp16") in proof.levels for proof in cured)
