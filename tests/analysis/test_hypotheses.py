"""Predictions are decided by their rules, from the cells alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nangrid.analysis.histories import History
from nangrid.analysis.hypotheses import Answer, Hypothesis, Prediction, decide, read_hypotheses
from nangrid.cell.config import CONF_DIR
from nangrid.records.cell import CellError, CellRecord, Trains
from nangrid.records.errors import InputError
from nangrid.records.history import COLUMNS

MakeRecord = Callable[..., CellRecord]


@pytest.fixture
def cell(make_record: MakeRecord) -> Callable[..., CellRecord]:
    def make(name: str, onset: int | None = None, **more: Any) -> CellRecord:
        dtype, init, seed = name.split()
        factors = {"dtype": dtype, "dtype.storage": f"{dtype}'s", "init": init, "seed": int(seed)}
        rung = None if onset is None else {"gradient": onset}
        return make_record(rung, cell_id=name.replace(" ", "-"), factors=factors, **more)

    return make


def answer(rule: str, records: list[CellRecord], histories: dict[str, History] | None = None, **more: Any) -> Answer:
    prediction = Prediction("it does", more.pop("where", {}), rule, **more)
    by_id = {name.replace(" ", "-"): history for name, history in (histories or {}).items()}
    return decide(Hypothesis("S0", "it does", [prediction]), records, by_id)


CHANGE = {"init": ["zero", "mean"]}


def test_a_cure_must_train_in_every_pair(cell: Callable[..., CellRecord]) -> None:
    zero, mean = [cell(f"fp16 zero {s}", onset=0) for s in (0, 1)], [cell(f"fp16 mean {s}") for s in (0, 1)]
    good = answer("cures", zero + mean, change=CHANGE)
    assert (
        good.verdict == "supported"
        and good.decided[0].says == "2 of 2 failing cells (1 combination) train once init is mean"
    )
    bad = answer("cures", [*zero, mean[0], cell("fp16 mean 1", onset=0)], change=CHANGE)
    assert bad.verdict == "refuted" and bad.decided[0].cells == ("fp16-zero-1", "fp16-mean-1")


def test_one_testable_prediction_of_three_does_not_decide_a_claim(cell: Callable[..., CellRecord]) -> None:
    cures = Prediction("it does", {}, "cures", change=CHANGE)
    untested = Prediction("it does", {"dtype": "fp32"}, "fails")
    records = [cell("fp16 zero 0", onset=0), cell("fp16 mean 0")]
    assert decide(Hypothesis("S0", "", [cures, untested, untested]), records, {}).verdict == "undecided here"
    assert decide(Hypothesis("S0", "", [cures, untested]), records, {}).verdict == "supported"


def test_a_finite_cell_that_does_not_learn_is_no_cure(cell: Callable[..., CellRecord]) -> None:
    frozen = cell("fp16 mean 0", trains=Trains(0, [], 0.0, 4.0, 4.0))
    assert answer("cures", [cell("fp16 zero 0", onset=0), frozen], change=CHANGE).verdict == "refuted"


def test_a_cure_that_was_not_watched_for_long_enough_decides_nothing(cell: Callable[..., CellRecord]) -> None:
    pair = [cell("fp16 zero 0", onset=5), cell("fp16 mean 0")]
    assert answer("cures", pair, change=CHANGE).verdict == "not testable here", "16 steps are under 4 x 5"


def test_a_few_steps_refute_no_prediction_of_a_failure(cell: Callable[..., CellRecord]) -> None:
    short = cell("bf16 zero 0", steps_done=3, horizon=3)
    assert answer("fails", [short]).verdict == "not testable here"
    assert answer("fails", [short, cell("bf16 zero 1")]).verdict == "not reproduced here"


def test_without_a_failing_cell_there_is_nothing_to_cure(cell: Callable[..., CellRecord]) -> None:
    assert answer("cures", [cell("fp16 zero 0"), cell("fp16 mean 0")], change=CHANGE).verdict == "not testable here"


def test_a_group_takes_its_fields_along(cell: Callable[..., CellRecord]) -> None:
    pair = [cell("fp16 zero 0", onset=0), cell("bf16 zero 0")]
    assert answer("cures", pair, change={"dtype": ["fp16", "bf16"]}).verdict == "supported"


def test_cells_of_other_seeds_are_no_pair(cell: Callable[..., CellRecord]) -> None:
    pair = [cell("fp16 zero 0", onset=0), cell("fp16 mean 1")]
    assert answer("cures", pair, change=CHANGE).verdict == "not testable here"


def test_where_restricts(cell: Callable[..., CellRecord]) -> None:
    cells = [cell("fp16 zero 0", onset=0), cell("bf16 zero 0")]
    assert answer("fails", cells, where={"dtype": "bf16"}).verdict == "not reproduced here"
    assert answer("fails", cells, where={"dtype": "fp16"}).verdict == "supported"
    assert answer("fails", cells, where={"dtype": "fp32"}).verdict == "not testable here"


def test_a_crash_says_nothing(cell: Callable[..., CellRecord]) -> None:
    crashed = cell("bf16 zero 0", status="error", error=CellError("OutOfMemory", "", ""))
    assert answer("fails", [crashed]).verdict == "not testable here"


def history(norms: list[float]) -> History:
    rows = np.ones((len(norms), len(COLUMNS)))
    rows[:, list(COLUMNS).index("grad_norm")] = norms
    return rows


def test_bits_decide_a_difference(cell: Callable[..., CellRecord]) -> None:
    cells = [cell("bf16 zero 0"), cell("bf16 mean 0")]
    same = {"bf16 zero 0": history([1.0]), "bf16 mean 0": history([1.0])}
    assert answer("differs", cells, same, change=CHANGE).verdict == "refuted"
    one_bit = same | {"bf16 mean 0": history([np.nextafter(1.0, 2.0)])}
    assert answer("differs", cells, one_bit, change=CHANGE).verdict == "supported"


def test_a_warning_counts_only_before_the_onset(cell: Callable[..., CellRecord]) -> None:
    cells = [cell("fp16 zero 0", onset=4)]
    early, late = ({"fp16 zero 0": history([10, norm, 10, 10, np.inf])} for norm in (2e3, 20))
    assert answer("warned", cells, early, threshold=1000.0).verdict == "supported"
    assert answer("warned", cells, late, threshold=1000.0).verdict == "refuted"
    soon = [cell("fp16 zero 0", onset=2)]
    assert answer("warned", soon, late, threshold=1000.0).verdict == "not testable here", "no time for a warning"


def test_false_alarms_alone_refute_no_warning(cell: Callable[..., CellRecord]) -> None:
    predictions = [Prediction("it warns", {}, rule, threshold=1000.0) for rule in ("warned", "quiet")]
    loud = {"bf16-zero-0": history([1e8])}
    found = decide(Hypothesis("R0", "it warns", predictions), [cell("bf16 zero 0")], loud)
    assert found.verdict == "not testable here" and "1 of 1 cells that train" in found.decided[1].says


def test_a_cell_that_trains_under_a_great_norm_is_a_false_alarm(cell: Callable[..., CellRecord]) -> None:
    cells = [cell("bf16 zero 0"), cell("bf16 mean 0")]
    norms = {"bf16 zero 0": history([1e8]), "bf16 mean 0": history([40.0])}
    found = answer("quiet", cells, norms, threshold=1000.0)
    assert found.verdict == "refuted" and found.decided[0].cells == ("bf16-zero-0",)


def test_predictions_that_disagree_hold_in_part(cell: Callable[..., CellRecord]) -> None:
    both = [Prediction("a", {"dtype": "fp16"}, "fails"), Prediction("b", {"dtype": "bf16"}, "fails")]
    cells = [cell("fp16 zero 0", onset=0), cell("bf16 zero 0")]
    assert decide(Hypothesis("S0", "", both), cells, {}).verdict == "in part"


def test_the_committed_hypotheses_are_those_of_the_issue() -> None:
    names = [hypothesis.name for hypothesis in read_hypotheses(CONF_DIR / "hypotheses")]
    assert names == ["S1", "S2", "S3", "S4", "R1", "R2", "R3", "R4", "R5"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("claim: c\ntests:\n- {prediction: p, where: {}, rule: guess}", "rule is 'guess'"),
        ("claim: c\ntests:\n- {prediction: p, where: {}, rule: cures}", "do not go together"),
        ("claim: c\ntests:\n- {prediction: p, rule: fails}", "lacks where"),
        ("claim: [", "is not a hypothesis"),
        ("tests: []", "claim"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "S9.yaml").write_text(content)
    with pytest.raises(InputError, match=said) as refused:
        read_hypotheses(tmp_path)
    assert "S9.yaml" in str(refused.value)
