import dataclasses
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb

from nangrid.records.cell import CLOCKS, CellRecord
from nangrid.records.errors import InputError
from nangrid.tracking.wandb_run import NoRun, Run, WandbRun, open_run, run_id

MakeRecord = Callable[..., CellRecord]

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def wandb_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account, no server, and no file outside of the test's directory."""
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    for variable in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    yield
    wandb.teardown()  # wandb reads the environment once


def start(directory: Path, **changes: Any) -> Run:
    options: dict[str, Any] = {
        "name": "wandb",
        "mode": "offline",
        "project": "nangrid",
        "entity": None,
        "directory": directory,
        "cell_id": "cell",
        "grid_id": "grid",
        "config": {"dtype": "fp16", "dtype.storage": "fp16", "seed": 0},
    }
    return open_run(**options | changes)


def inspect(directory: Path) -> list[dict[str, Any]]:
    """The records of an offline run, as W&B's own reader prints them."""
    (run,) = (directory / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def merged(records: list[dict[str, Any]], kind: str, of: Callable[[Any], Any]) -> dict[str, Any]:
    updates: dict[str, Any] = {}
    for record in records:
        if record["type"] == kind:
            updates |= of(record[kind])
    return updates


def test_an_offline_run_reads_back(tmp_path: Path, make_record: MakeRecord, capfd: pytest.CaptureFixture[str]) -> None:
    record = make_record({"gradient": 0, "loss": 1}, ledger={"residual_stream": "fp16", "warnings": []})
    run = start(tmp_path)
    run.log(0, {"step": 0, "loss": 3.96, "grad_norm": math.inf, "eval_loss": None, "nonfinite_gradient": 7})
    run.log(1, {"step": 1, "loss": math.nan, "nonfinite_loss": 1, "nonfinite_eval_loss": None})
    run.finish(record)
    captured = capfd.readouterr()

    read = inspect(tmp_path)
    steps = [entry["history"]["item"] for entry in read if entry["type"] == "history"]
    opened = next(entry["run"] for entry in read if entry["type"] == "run")
    shown = merged(read, "summary", lambda summary: summary["update"])
    assert [step["nonfinite/gradient"] for step in steps] == [1, 0]
    assert [step["nonfinite/loss"] for step in steps] == [0, 1]
    assert all(f"nonfinite/{clock}" in step for clock in CLOCKS for step in steps)
    assert "eval_loss" not in steps[0]
    assert (opened["run_id"], opened["run_group"]) == ("grid-cell", "grid")
    assert opened["config"]["update"]["dtype.storage"] == "fp16"
    assert merged(read, "config", lambda config: config["update"])["ledger"]["residual_stream"] == "fp16"
    assert {key: shown[key] for key in ("onset_step", "censored", "steps_survived", "status", "trains")} == {
        "onset_step": 0,
        "censored": 0,
        "steps_survived": 0,
        "status": "nonfinite",
        "trains": 0,
    }
    assert read[-1]["exit"]["exit_code"] == 0
    assert captured == ("", "")


def test_a_censored_cell_has_its_steps_as_a_finite_onset(tmp_path: Path, make_record: MakeRecord) -> None:
    start(tmp_path).finish(make_record())
    shown = merged(inspect(tmp_path), "summary", lambda summary: summary["update"])
    assert (shown["onset_step"], shown["censored"], shown["onset_clock"]) == (16, 1, "none")


def test_a_crash_ends_the_run_with_exit_code_1(tmp_path: Path) -> None:
    start(tmp_path).crash()
    assert inspect(tmp_path)[-1]["exit"]["exit_code"] == 1


def test_a_run_changes_no_random_number(tmp_path: Path, make_record: MakeRecord) -> None:
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), repr(np.random.get_state())
    run = start(tmp_path)
    run.log(0, {"loss": 1.0})
    run.finish(make_record())
    assert (random.getstate(), repr(np.random.get_state())) == before


def test_no_file_holds_the_key(tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = start(tmp_path)
    run.log(0, {"loss": 1.0})
    run.finish(make_record())
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


def test_online_without_a_key_warns_once_and_goes_on(
    tmp_path: Path, make_record: MakeRecord, capfd: pytest.CaptureFixture[str]
) -> None:
    run = start(tmp_path, mode="online")
    run.log(0, {"loss": 1.0})
    run.finish(make_record())
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("warning: the cell goes on without W&B: No API key configured")
    assert err.count("\n") == 1


def test_a_failure_in_the_middle_warns_once_and_goes_on(
    make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dead:
        def log(self, row: dict[str, Any], step: int) -> None:
            raise ConnectionResetError("service\n is gone")

    run = WandbRun(Dead())
    run.log(0, {"loss": 1.0})
    run.log(1, {"loss": 1.0})
    run.finish(make_record())
    assert capsys.readouterr().err == "warning: the cell goes on without W&B: service is gone\n"


def test_wandb_that_is_not_installed_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="tracker=wandb needs wandb: pip install wandb, or type tracker=none"):
        start(tmp_path)


def test_tracker_none_writes_nothing(tmp_path: Path, make_record: MakeRecord) -> None:
    run = start(tmp_path, name="none")
    run.log(0, {"loss": math.nan})
    run.finish(dataclasses.replace(make_record(), ledger={}))
    assert isinstance(run, NoRun)
    assert not any(tmp_path.iterdir())


def test_a_run_id_has_safe_characters_and_keeps_the_cell() -> None:
    assert run_id("my grid/ä-0a1b2c3d", "cell") == "my-grid---0a1b2c3d-cell"
    assert run_id("g" * 200, "cell").endswith("g-cell")
    assert len(run_id("g" * 200, "cell")) == 128
