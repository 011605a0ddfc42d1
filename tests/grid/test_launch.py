"""A grid from the command line to the table and the exit code; only what runs inside a cell is fake."""

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import jsonschema
import pytest
from fake_cell import starts_file

from nangrid.commands.run import main
from nangrid.grid.collect import GridOutcome
from nangrid.grid.launch import CellsFailedError, launch
from nangrid.grid.lock import is_held
from nangrid.grid.plan import CellPlan
from nangrid.records.cell import read_record
from nangrid.records.grid import GridDirectory
from nangrid.records.output.schemas import path_of


def run(out: Path, *arguments: str) -> int:
    return main([f"out={out}", "model=tiny", "tracker=none", *arguments])


def cells(out: Path) -> list[Path]:
    return sorted((out / "cells").glob("*/result.json"))


def test_a_grid_ends_with_its_onset_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "-m", "seed=0,1", "hydra.launcher.n_jobs=2", "dtype=bf16,fp32", "horizon=4") == 0
    capsys.readouterr()
    assert run(tmp_path, "-m", "seed=0", "dtype=bf16,fp32", "horizon=4") == 0
    shown = capsys.readouterr()
    assert "cell 2/2 dtype=fp32: finite for 4 steps" in shown.out
    assert "2 cells: 2 finite" in shown.out
    assert "2 of 4 runs failed, in one way. The gradient is non-finite" in " ".join(shown.out.split())
    assert f"where, why, what to change: python -m src.why {tmp_path}" in shown.out.splitlines()
    assert len((tmp_path / "onsets.csv").read_text().splitlines()) == 5, "the file holds the earlier cells too"
    assert shown.err == ""


def test_json_is_all_that_standard_output_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A crashed cell makes exit code 1, and the others are results all the same."""
    assert run(tmp_path, "-m", "seed=0,1,2", "horizon=4", "--json") == 1
    shown = capsys.readouterr()
    value = json.loads(shown.out)
    jsonschema.validate(value, json.loads(path_of("run").read_text()))
    assert sorted((cell["status"], cell["onset_step"]) for cell in value["cells"] if cell["error"] is None) == [
        ("finite", None),
        ("nonfinite", 2),
    ]
    assert value["answer"]["outcome"] == "failed" and "cell 3/3" in shown.err


def test_crashed_cells_are_named_with_their_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "-m", "seed=0,2") == 1
    error = capsys.readouterr().err
    assert "1 of 2 cells crashed" in error
    (path,) = (line.split(": ")[1] for line in error.splitlines() if "seed=2" in line)
    assert "said by python" in Path(path).read_text()


def test_a_cell_that_cannot_be_built_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "seed=6") == 2
    assert capsys.readouterr().err == "vocab.size=9999 is more than the data yields: take vocab.size=10.\n"
    assert cells(tmp_path) == []


def test_a_single_run_is_a_cell_of_the_same_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "seed=1") == 0
    assert "gradient went non-finite at step 2" in capsys.readouterr().out
    assert run(tmp_path, "-m", "seed=0,1") == 0
    assert len(cells(tmp_path)) == 2


def test_duplicates_run_once_to_the_longest_horizon(tmp_path: Path) -> None:
    assert run(tmp_path, "-m", "horizon=4,8", "threads=1,2") == 0
    (path,) = cells(tmp_path)
    record = read_record(path.parent)
    assert record and record.horizon == 8
    assert len(starts_file(path.parent).read_text().splitlines()) == 1


def test_dry_run_lists_the_cells_and_creates_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert run(out, "-m", "seed=0,1", "dry_run=true") == 0
    *cells, total = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in cells] == [["to", "run", "seed=0"], ["to", "run", "seed=1"]]
    assert total.startswith("2 cells, 2 to run: at most about") and "1 in parallel" in total
    assert not out.exists()
    run(out, "seed=1")
    capsys.readouterr()
    assert run(out, "-m", "seed=0,1", "dry_run=true") == 0
    shown = capsys.readouterr().out
    assert "nonfinite  seed=1" in shown and "2 cells, 1 to run" in shown and "from 1 finished run of tiny" in shown


def test_an_override_may_refer_to_another_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "-m", "seed=3,4", "optim.warmup=${seed}", "dry_run=true") == 0
    assert run(tmp_path, "optim.warmup=${seed}", "dry_run=true") == 0
    ids = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "to run " in line]
    assert len(ids) == 3 and len(set(ids)) == 3


def test_the_command_line_overrides_an_experiments_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "-m", "+experiment=smoke", "init=mvn,normal", "dry_run=true") == 0
    listed = [line.split("  ")[-1].strip() for line in capsys.readouterr().out.splitlines()[:-1]]
    assert listed == [f"dtype={dtype} init={init}" for dtype in ("bf16", "fp16") for init in ("mvn", "normal")]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-m", "seed=0,1", "out=a,b"], "means several grids at once"),
        (["-m", "dtype=bf16,bf61"], "did you mean dtype=bf16?"),
        (["-m", "dtype=bf16,amp_fp16"], "silently trains without AMP"),
        (["-m", "seed=0,1", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0 is out of range"),
        (["-m", "seed=0,1", "hydra.launcher.timeout_s=-1"], "hydra.launcher.timeout_s=-1 is out of range"),
        (["-m", "data=pydoc,jsonl"], "data=jsonl needs data.path"),
    ],
)
def test_one_impossible_cell_stops_the_grid_before_it_begins(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert main(["model=tiny", *arguments]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and len(shown.err.splitlines()) == 1 and shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_cannot_be_written_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run(tmp_path / "file", "seed=0") == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_cells_and_leaves_them_unfinished(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        while not list(tmp_path.glob("starts-*")):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    assert run(tmp_path, "seed=5") == 130
    assert "Run the same command again to resume" in capsys.readouterr().err
    (cell,) = (tmp_path / "cells").iterdir()
    assert read_record(cell) is None and not is_held(cell)


def test_a_full_disk_is_reported_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    assert run(tmp_path, "-m", "seed=0,1") == 0
    monkeypatch.setattr("nangrid.analysis.onsets.write_bytes", full)
    assert run(tmp_path, "-m", "seed=0,1") == 1
    error = capsys.readouterr().err
    assert "onsets.parquet cannot be written (No space left on device). Free some space" in error
    assert len(error.splitlines()) == 1


class Deleting:
    """An executor during whose run somebody deletes the grid's directory."""

    max_parallel = 1

    def check(self) -> None: ...

    def warm_up(self) -> None: ...

    def run(self, plans: Sequence[CellPlan], grid: GridDirectory) -> GridOutcome:
        shutil.rmtree(grid.path)
        return GridOutcome()


def test_a_grid_deleted_while_it_runs_is_named(make_plan: Callable[..., CellPlan]) -> None:
    plan = make_plan()
    with pytest.raises(CellsFailedError, match="grid was deleted while its cells ran"):
        launch([(asdict(plan.config), plan.overrides)], Deleting())
