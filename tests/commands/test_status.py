"""The progress of a grid, read from its directory alone."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_cell import plan_in

from nangrid.commands.status import main
from nangrid.grid.lock import acquire, release
from nangrid.grid.plan import CellPlan
from nangrid.grid.progress import report_steps
from nangrid.grid.request import write_request
from nangrid.records.cell import CellError, CellRecord, Seconds, write_record
from nangrid.records.grid import GridDirectory

MakeRecord = Callable[..., CellRecord]


def of_tiny(plan: CellPlan) -> dict[str, Any]:
    return {"cell_id": plan.cell_id, "factors": {"model": "tiny"}}


def status(grid: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(grid)]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_a_running_grid(tmp_path: Path, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]) -> None:
    grid = GridDirectory.open(tmp_path)
    plans = [plan_in(tmp_path, seed) for seed in range(5)]
    for plan in plans:
        write_request(plan, grid.grid_id)
    finite, nonfinite, crashed, running, _waiting = plans
    write_record(finite.directory(), make_record(**of_tiny(finite)))
    write_record(nonfinite.directory(), make_record({"loss": 3}, **of_tiny(nonfinite), seconds=Seconds(4.0, 5.0, 0.0)))
    error = CellError("OutOfMemory", "can't allocate memory", "")
    write_record(crashed.directory(), make_record(cell_id=crashed.cell_id, status="error", error=error))
    lock = acquire(running.directory())
    assert lock is not None
    report_steps(running.directory(), 16)(3, 2.25)

    shown = status(tmp_path, capsys)
    assert f"{tmp_path}: 5 cells: 1 finite, 1 non-finite, 1 error, 1 running, 1 waiting" in shown
    assert "running 4/16 2.25" in shown and "error OutOfMemory" in shown
    # 20 s for 16 steps and 4 s to begin, by the finite cell: 12 steps and a whole cell are left, one at a time
    assert "about 39 s left if all cells reach their horizon" in shown

    release(lock)
    shown = status(tmp_path, capsys)
    assert "1 unfinished" in shown and "not running: run the original command to resume" in shown


def test_a_record_that_cannot_be_trusted_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = GridDirectory.open(tmp_path)
    plan = plan_in(tmp_path)
    write_request(plan, grid.grid_id)
    (plan.directory() / "result.json").write_text("{")
    assert "1 damaged" in status(tmp_path, capsys)


def test_status_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = GridDirectory.open(tmp_path)
    plan = plan_in(tmp_path)
    write_request(plan, grid.grid_id)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    status(tmp_path, capsys)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_directory_that_is_not_a_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "is not the directory of a grid (it has no grid.json): give the out= of one" in capsys.readouterr().err


def test_follow_ends_when_no_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GridDirectory.open(tmp_path)
    monkeypatch.setattr("nangrid.commands.status.QUIET_S", 0.2)
    began = time.monotonic()
    assert main([str(tmp_path), "--follow"]) == 0
    assert time.monotonic() - began < 5 and os.listdir(tmp_path / "cells") == []


def test_no_word_is_broken_at_80_columns(
    tmp_path: Path, make_record: MakeRecord, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    grid = GridDirectory.open(tmp_path)
    title = "dtype=silent_fp16 init=uninitialised targets=qv_embed_head optim=paged_adamw_32bit"
    error = CellError("OutOfMemory", "can't allocate memory", "")
    for seed in (0, 1):
        plan = replace(plan_in(tmp_path, seed), title=title)
        write_request(plan, grid.grid_id)
        report_steps(plan.directory(), 10_000)(9_876, 1.2345678)
    write_record(plan.directory(), make_record(cell_id=plan.cell_id, status="error", error=error))
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines() if str(tmp_path) not in line)
    for word in [*title.split(), "unfinished", "9877/16", "1.235", "OutOfMemory", "updated"]:
        assert word in shown
