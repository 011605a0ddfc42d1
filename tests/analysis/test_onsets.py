import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from nangrid.analysis.onsets import factor_columns, onset_pivot, onset_table, varying_factors, write_onsets
from nangrid.records.cell import CellError, CellRecord
from nangrid.records.grid import GridDirectory

MakeRecord = Callable[..., CellRecord]


def factors(**changes: Any) -> dict[str, Any]:
    dtype = changes.get("dtype", "bf16").rstrip("*")
    return {"seed": 0, "dtype": dtype, "dtype.storage": dtype, "init": "zero", "init.std": 0.02} | changes


def test_rows_are_in_the_order_of_levels_as_first_met(make_record: MakeRecord) -> None:
    pairs = [("fp16", "zero"), ("bf16", "mean"), ("bf16", "zero"), ("fp16", "mean")]
    table = onset_table([make_record(factors=factors(dtype=dtype, init=init)) for dtype, init in pairs])
    assert table[["dtype", "init"]].to_numpy().tolist() == [
        ["fp16", "zero"],
        ["fp16", "mean"],
        ["bf16", "zero"],
        ["bf16", "mean"],
    ]


def test_a_field_that_follows_from_its_level_is_no_factor(make_record: MakeRecord) -> None:
    table = onset_table([make_record(factors=factors(dtype=dtype)) for dtype in ("bf16", "fp16")])
    assert factor_columns(table) == ["dtype"]


def test_a_field_that_varies_on_its_own_is_a_factor(make_record: MakeRecord) -> None:
    table = onset_table([make_record(factors=factors(**{"init.std": std})) for std in (0.02, 0.1)])
    assert factor_columns(table) == ["init.std"]
    assert table["init.std"].tolist() == [0.02, 0.1]


def test_the_field_that_a_starred_level_overrides_is_a_factor(make_record: MakeRecord) -> None:
    changes: list[dict[str, Any]] = [{}, {"dtype": "bf16*", "dtype.storage": "fp32"}]
    table = onset_table([make_record(factors=factors(**change)) for change in changes])
    assert factor_columns(table) == ["dtype.storage"], "one change is one factor: the level itself is bf16 in both"


def test_a_starred_level_is_told_without_its_star_beside_its_field(make_record: MakeRecord) -> None:
    levels = [("bf16", "bf16"), ("bf16*", "fp16"), ("fp16*", "bf16"), ("fp16", "fp16")]
    records = [make_record(factors=factors(dtype=level, **{"dtype.storage": field})) for level, field in levels]
    table = onset_table(records)
    assert sorted(zip(table["dtype"], table["dtype.storage"], strict=True)) == [
        ("bf16", "bf16"), ("bf16", "fp16"), ("fp16", "bf16"), ("fp16", "fp16")
    ]  # fmt: skip


def test_integer_factors_with_null_stay_integers_and_lists_become_text(make_record: MakeRecord) -> None:
    changes: list[dict[str, Any]] = [
        {"model.layers": 4, "targets.modules": ["q"]},
        {"model.layers": None, "targets.modules": []},
    ]
    table = onset_table([make_record(factors=factors(**change)) for change in changes])
    assert table["model.layers"].tolist() == [4, pd.NA]
    assert table["targets.modules"].tolist() == ['["q"]', "[]"]


def test_records_without_a_number_of_processes_have_one(make_record: MakeRecord) -> None:
    records = [make_record(factors=factors()), make_record(factors=factors(processes=2))]
    assert onset_table(records)["processes"].tolist() == [1, 2]
    assert "processes" not in onset_table(records[:1])


def test_each_outcome_is_told_apart(make_record: MakeRecord) -> None:
    error = CellError("RuntimeError", "no memory", "")
    records = [
        make_record({"gradient": 2, "loss": 3}, cell_id="nan"),
        make_record(cell_id="finite"),
        make_record(cell_id="crash", status="error", steps_done=1, censored=False, error=error),
    ]
    table = onset_table(records).set_index("cell_id")
    assert table["onset_step"].tolist() == [2, pd.NA, pd.NA]
    assert table["loss_step"].tolist() == [3, pd.NA, pd.NA]
    assert table["steps_survived"].tolist() == [2, 16, 1]
    assert table["trains"].tolist() == [False, True, False]
    assert table.loc["nan", "onset_clock"] == "gradient"
    assert table.loc["crash", "error"] == "RuntimeError: no memory"
    assert table["mechanism"].isna().all()


def test_the_pivot_counts_cells_by_level(make_record: MakeRecord) -> None:
    cells = [("bf16", None), ("fp16", {"loss": 0}), ("fp16", {"loss": 3}), ("fp16", None)]
    records = [make_record(rung, factors=factors(dtype=dtype)) for dtype, rung in cells]
    pivot = onset_pivot(onset_table(records))
    assert pivot.astype("object").to_numpy().tolist() == [
        ["dtype", "bf16", 1, 0, pd.NA],
        ["dtype", "fp16", 3, 2, 1.5],
    ]


def test_a_grid_of_no_cell_or_one_cell_has_a_table(make_record: MakeRecord) -> None:
    assert onset_table([]).empty
    assert onset_pivot(onset_table([])).empty
    assert factor_columns(onset_table([make_record()])) == []
    assert len(onset_table([make_record()])) == 1


def test_the_table_of_a_large_grid_takes_time_in_proportion(make_record: MakeRecord) -> None:
    keys = {f"key_{number}": number for number in range(50)}
    records = [make_record(factors=keys | {"seed": seed}) for seed in range(2000)]
    began = time.process_time()
    assert len(onset_table(records)) == 2000
    assert time.process_time() - began < 5


def test_the_table_is_written_twice_and_reads_back(tmp_path: Path, make_record: MakeRecord) -> None:
    records = [make_record({"loss": 0}), make_record(factors=factors(dtype="fp16"))]
    table = onset_table(records)
    write_onsets(GridDirectory.open(tmp_path), table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "onsets.parquet"), table)
    csv = pd.read_csv(tmp_path / "onsets.csv")
    assert list(csv.columns) == list(table.columns)
    assert csv["onset_step"].tolist()[0] == 0


def test_a_spreadsheet_finds_no_formula_in_the_table(tmp_path: Path, make_record: MakeRecord) -> None:
    foreign = ["=HYPERLINK(0)", "@SUM(1)", "+cmd|' /C calc'!A0", "-2+3", "\t=1", "\uff1d1", "-1", "bf16", ""]
    records = [make_record(factors={"=level": level, "seed": n}) for n, level in enumerate(foreign)]
    write_onsets(GridDirectory.open(tmp_path), onset_table(records))
    csv = pd.read_csv(tmp_path / "onsets.csv", dtype=str, keep_default_na=False)
    assert csv["'=level"].tolist() == [f"'{level}" for level in foreign[:6]] + foreign[6:]
    assert pd.read_parquet(tmp_path / "onsets.parquet")["=level"].tolist() == foreign


def test_a_group_that_its_fields_tell_apart_is_no_factor_beside_them() -> None:
    cells = [
        {"dtype": "bf16", "dtype.storage": "bf16", "dtype.adapter": "bf16"},
        {"dtype": "bf16*", "dtype.storage": "fp16", "dtype.adapter": "bf16"},
        {"dtype": "bf16*", "dtype.storage": "bf16", "dtype.adapter": "fp16"},
        {"dtype": "fp16", "dtype.storage": "fp16", "dtype.adapter": "fp16"},
    ]
    assert list(varying_factors(cells)) == ["dtype.storage", "dtype.adapter"]
    cells.append({"dtype": "other", "dtype.storage": "fp16", "dtype.adapter": "fp16"})
    assert list(varying_factors(cells)) == ["dtype", "dtype.storage", "dtype.adapter"]
