"""A grid has a W&B run of its own, next to those of its cells."""

from pathlib import Path

import pytest
from runs import inspect, merged

from nangrid.analysis.evidence import judge
from nangrid.commands.run import main as run
from nangrid.records.grid import GridDirectory
from nangrid.reporting.tracked import track_grid


def test_it_carries_the_verdict_and_a_row_per_cell(default_grid: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grid = GridDirectory.at(default_grid)
    track_grid(grid, judge(grid), mode="offline", project="nangrid", entity=None)
    assert capfd.readouterr() == ("", "")
    read = inspect(grid.path)
    made = next(entry["run"] for entry in read if entry["type"] == "run")
    assert (made["run_group"], made["display_name"], made["job_type"]) == (grid.grid_id, "verdict", "grid")
    told = merged(read, "summary", lambda summary: summary["update"])
    assert told["verdict"] == "8 of 14 runs failed, in 3 ways."
    assert told["event_1"].endswith("dtype=fp16 causes it, and dtype=bf16 cures it.")
    assert told["onsets.nrows"] == 14
    (table,) = grid.path.rglob("onsets_*.table.json")
    assert '"fp16-gradient-overflow"' in table.read_text() and f'{grid.grid_id}-161fec23a567"' in table.read_text()


def test_a_grid_that_trained_something_has_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", "model=tiny", "model.layers=2", "data.length=16", "seed=0,1", "horizon=4", f"out={tmp_path}"]
    for _ in range(2):  # the second time nothing is left to train
        assert run(arguments) == 0
    assert "warning" not in capfd.readouterr().err
    (entry,) = [entry["run"] for entry in inspect(tmp_path) if entry["type"] == "run"]
    assert entry["run_group"] == GridDirectory.at(tmp_path).grid_id
