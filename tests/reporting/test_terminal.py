import dataclasses
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, RenderableType

from nangrid.analysis.onsets import onset_pivot, onset_table
from nangrid.records.cell import CellError, CellRecord
from nangrid.records.history import read_history, write_history
from nangrid.reporting.terminal import cell_summary, grid_summary

MakeRecord = Callable[..., CellRecord]


def rendered(renderable: RenderableType, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().splitlines()


def summary_of(records: list[CellRecord]) -> list[str]:
    table = onset_table(records)
    return rendered(grid_summary(table, onset_pivot(table)))


def history_of(directory: Path, norms: list[float | None]) -> pd.DataFrame:
    write_history(directory, [{"step": step, "grad_norm": norm} for step, norm in enumerate(norms)])
    return read_history(directory)


def test_default_grid_fits_80_columns_with_one_line_per_cell(make_record: MakeRecord) -> None:
    optims = ("paged_adamw_8bit", "adamw_torch")
    levels = product(("bf16", "fp16", "silent_fp16"), ("zero", "mean"), optims, ("none", "trainable"))
    records = [
        make_record(
            {"parameter": 0, "loss": 1} if dtype != "bf16" else None,
            factors={"dtype": dtype, "init": init, "optim": optim, "upcast": upcast},
            cell_id=f"{number:02x}3456789abc",
        )
        for number, (dtype, init, optim, upcast) in enumerate(levels)
    ]
    lines = summary_of(records)
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if "step 0 · parameter" in line]) == 16
    assert [line.split() for line in lines if line.startswith("silent_fp16 zero paged_adamw_8bit none")] == [
        ["silent_fp16", "zero", "paged_adamw_8bit", "none", "step", "0", "·", "parameter", "step", "1", "10345678"]
    ]
    assert "24 cells: 16 non-finite, 8 finite" in lines


def test_every_outcome_is_readable_without_colour(make_record: MakeRecord) -> None:
    trains = make_record().trains
    error = CellError("RuntimeError", "no memory", "")
    changes: list[dict[str, Any]] = [
        {},
        {"rung": {"optimizer_state": 5}},
        {"trains": dataclasses.replace(trains, frozen_from=1)},
        {"trains": dataclasses.replace(trains, without_gradient=["lm_head"])},
        {"status": "error", "steps_done": 0, "error": error},
        {"status": "timeout", "steps_done": 3},
    ]
    records = [make_record(factors={"seed": seed}, **change) for seed, change in enumerate(changes)]
    words = " ".join(" ".join(summary_of(records)).split())
    for outcome in (
        "0 finite (16 steps) 01234567",
        "1 step 5 · optimizer 01234567 state",
        "2 finite (16 steps), 01234567 frozen from 1",
        "3 finite (16 steps), 01234567 not all trained",
        "4 error: RuntimeError: 01234567 no memory",
        "5 timeout after 3 01234567 steps",
    ):
        assert outcome in words


def test_markup_in_a_level_or_an_error_is_shown_as_it_is(make_record: MakeRecord) -> None:
    error = CellError("ValueError", "[/red] is no tag", "")
    records = [
        make_record(factors={"targets.modules": ["[q]"]}, status="error", error=error),
        make_record(factors={"targets.modules": ["[/k]"]}),
    ]
    text = "\n".join(summary_of(records))
    assert '["[q]"]' in text
    assert '["[/k]"]' in text
    assert "[/red] is no tag" in text


def test_the_pivot_counts_each_level(make_record: MakeRecord) -> None:
    cells: list[tuple[str, dict[str, int] | None]] = [
        ("bf16", None),
        ("fp16", {"loss": 0}),
        ("fp16", {"loss": 3}),
    ]
    lines = summary_of([make_record(rung, factors={"dtype": dtype}) for dtype, rung in cells])
    words = [line.split() for line in lines]
    assert ["dtype", "bf16", "1", "0"] in words
    assert ["fp16", "2", "2", "1.5"] in words


def test_many_factors_wrap_between_words_in_one_column(make_record: MakeRecord) -> None:
    keys = ["model", "quant", "dtype", "vocab", "init", "targets", "checkpointing", "optim"]
    levels = ("paged_adamw_8bit", "reentrant")
    lines = summary_of([make_record(factors=dict.fromkeys(keys, level)) for level in levels])
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if line.endswith("01234567") and "finite (16 steps)" in line]) == 2
    words = " ".join(lines).split()
    assert all(words.count(f"{key}={level}") == 1 for key in keys for level in levels)


def test_a_single_cell_has_a_summary(make_record: MakeRecord) -> None:
    assert any("finite (16 steps)" in line for line in summary_of([make_record()]))


def test_a_non_finite_cell_ends_with_each_clock_in_order(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record({"loss": 1, "optimizer_state": 0, "gradient": 0})
    first, last = cell_summary(record, history_of(tmp_path, [math.nan, math.inf]), tmp_path).splitlines()
    assert first == (
        "gradient went non-finite at step 0, optimizer state at step 0, loss at step 1: "
        "loss 3.96 -> 3.41, gradient norm up to inf"
    )
    assert last == f"records: {tmp_path}"


def test_a_finite_cell_is_called_censored(tmp_path: Path, make_record: MakeRecord) -> None:
    text = cell_summary(make_record(), history_of(tmp_path, [85.0, 1.1e8, None]), tmp_path)
    assert text.startswith("finite for 16 steps (censored): loss 3.96 -> 3.41, gradient norm up to 1.1e8\n")


def test_warnings_come_first_and_what_did_not_train_is_said(tmp_path: Path, make_record: MakeRecord) -> None:
    trains = dataclasses.replace(make_record().trains, frozen_from=2, without_gradient=["a", "b", "c", "d"])
    record = make_record(trains=trains, ledger={"warnings": ["upcast=kbit changed nothing"]})
    lines = cell_summary(record, history_of(tmp_path, []), tmp_path).splitlines()
    assert lines[0] == "WARNING: upcast=kbit changed nothing"
    assert lines[2].startswith("FROZEN from step 2: the gradient norm is inf")
    assert lines[3] == "NO GRADIENT ever reached 4 trainables: a, b, c and 1 more"


def test_a_crashed_cell_ends_with_the_tail_of_its_log(tmp_path: Path, make_record: MakeRecord) -> None:
    error = CellError("RuntimeError", "no memory", "\n".join(f"line {n}" for n in range(30)))
    record = make_record(status="error", steps_done=2, censored=False, error=error)
    lines = cell_summary(record, None, tmp_path).splitlines()
    assert lines[0] == "error after 2 steps: RuntimeError: no memory"
    assert lines[-2] == "  line 29"
    assert len(lines) == 12
