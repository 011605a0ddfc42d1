import dataclasses
import json
import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autopsies import make_autopsy
from runs import files_with, inspect, merged, start

from nangrid.records.autopsy import TokenRecord
from nangrid.records.cell import CLOCKS, CellRecord
from nangrid.records.errors import InputError
from nangrid.records.explain.finding import finding_of
from nangrid.tracking.wandb_run import NoRun, WandbRun, run_id

MakeRecord = Callable[..., CellRecord]


def test_offline_run_can_be_read_back(
    tmp_path: Path, make_record: MakeRecord, capfd: pytest.CaptureFixture[str]
) -> None:
    record = make_record({"gradient": 0, "loss": 1}, ledger={"residual_stream": "fp16", "warnings": []})
    run = start(tmp_path)
    run.log(0, {"step": 0, "loss": 3.96, "grad_norm": math.inf, "eval_loss": None, "nonfinite_gradient": 7})
    run.log(1, {"step": 1, "loss": math.nan, "nonfinite_loss": 1, "nonfinite_eval_loss": None})
    run.finish(record)
    captured = capfd.readouterr()

    read = inspect(tmp_path)
    steps = [entry["history"]["item"] for entry in read if entry["type"] == "history"]
    on_watch_created = next(entry["run"] for entry in read if entry["type"] == "run")
    shown = merged(read, "summary", lambda summary: summary["update"])
    assert [step["nonfinite/gradient"] for step in steps] == [1, 0]
    assert [step["nonfinite/loss"] for step in steps] == [0, 1]
    assert all(f"nonfinite/{clock}" in step for clock in CLOCKS for step in steps)
    assert "eval_loss" not in steps[0]
    assert (on_watch_created["run_id"], on_watch_created["run_group"]) == ("grid-cell", "grid")
    assert on_watch_created["config"]["update"]["dtype.storage"] == "fp16"
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


def test_censored_cell_has_a_finite_onset_step(tmp_path: Path, make_record: MakeRecord) -> None:
    start(tmp_path).finish(make_record())
    shown = merged(inspect(tmp_path), "summary", lambda summary: summary["update"])
    assert (shown["onset_step"], shown["censored"], shown["onset_clock"]) == (16, 1, "none")


def test_headroom_is_logged_in_bits_per_format(tmp_path: Path, make_record: MakeRecord) -> None:
    looks = [{"kind": "activation", "absmax": size} for size in (16.0, 131008.0)]
    looks += [{"kind": "gradient", "absmax": size} for size in (0.0, math.inf)]
    run = start(tmp_path)
    run.log(0, {"step": 0, "loss": 3.96}, looks)
    run.log(1, {"step": 1, "loss": 3.9})
    run.finish(make_record())
    first, second = (entry["history"]["item"] for entry in inspect(tmp_path) if entry["type"] == "history")
    assert first["headroom/activation/fp16"] == -1.0 and first["headroom/activation/bf16"] > 100
    assert not any(key.startswith("headroom/gradient") for key in first), "charts drop what is not a number"
    assert not any(key.startswith("headroom") for key in second)


def test_a_crash_ends_the_run_with_exit_code_1(tmp_path: Path) -> None:
    start(tmp_path).crash()
    assert inspect(tmp_path)[-1]["exit"]["exit_code"] == 1


def test_killed_cell_keeps_its_logged_steps(tmp_path: Path) -> None:
    started = "from pathlib import Path; import sys, time; sys.path.append(sys.argv[2]); from runs import start; "
    logged = "run = start(Path(sys.argv[1])); run.log(0, {'loss': 4.0}); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", started + logged, str(tmp_path), str(Path(__file__).parent)])
    deadline = time.monotonic() + 30
    while not any(log.stat().st_size > 300 for log in tmp_path.glob("wandb/*/*.wandb")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1.5)
    child.kill()
    child.wait()
    assert [entry["history"]["step"]["num"] for entry in inspect(tmp_path) if entry["type"] == "history"] == [0]


def test_logging_changes_no_random_state(tmp_path: Path, make_record: MakeRecord) -> None:
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), repr(np.random.get_state())
    run = start(tmp_path)
    run.log(0, {"loss": 1.0})
    run.finish(make_record())
    assert (random.getstate(), repr(np.random.get_state())) == before


def test_no_file_holds_the_key(tmp_path: Path, make_record: MakeRecord, key: str) -> None:
    run = start(tmp_path)
    run.log(0, {"loss": 1.0})
    run.finish(make_record())
    assert files_with(tmp_path, key) == []


def test_a_failing_cell_alerts_once_with_its_levels(tmp_path: Path, make_record: MakeRecord) -> None:
    run = start(tmp_path)
    run.log(0, {"loss": 1.0, "nonfinite_loss": 0})
    run.log(1, {"loss": math.nan, "nonfinite_parameter": 2, "nonfinite_loss": 1})
    run.finish(make_record({"parameter": 1}))
    (alert,) = [entry["alert"] for entry in inspect(tmp_path) if entry["type"] == "alert"]
    assert alert["title"] == "onset at step 1, clock parameter"
    assert alert["text"] == "onset at step 1, clock parameter: dtype=fp16 seed=0"


def test_a_failing_cell_shows_why_without_the_text_of_its_data(tmp_path: Path, make_record: MakeRecord) -> None:
    cell, home = tmp_path / "cell", tmp_path / "home"
    cell.mkdir()
    for name in ("operation.py", "operands.safetensors"):
        (cell / name).write_bytes(b"of the failing operation")
    tokens = [TokenRecord(0, 0, 2, "SECRET", False)]
    finding = finding_of(make_autopsy(alone=True, tokens=tokens), cell, with_text=False)
    run = start(cell)
    run.log(0, {"loss": math.nan, "nonfinite_loss": 1})
    run.finish(make_record({"loss": 0}), finding)
    read = inspect(cell)
    (alert,) = [entry["alert"] for entry in read if entry["type"] == "alert"]
    assert alert["title"] == finding.title
    assert "modeling_gemma3.py:416, model.layers.7, forward pass: aten.add.Tensor" in alert["text"]
    shown = merged(read, "summary", lambda summary: summary["update"])
    assert (shown["where"], shown["change_first"]) == (finding.where, "dtype=bf16")
    (table,) = cell.rglob("autopsy_*.table.json")
    assert dict(json.loads(table.read_text())["data"])["where"] == finding.where
    (artifact,) = [e["artifact"] for e in read if e["type"] == "artifact" and e["artifact"]["type"] == "autopsy"]
    assert {file["path"] for file in artifact["manifest"]["contents"]} == {"operation.py", "operands.safetensors"}
    assert files_with(cell, "SECRET") == [] and not any(path.is_file() for path in home.rglob("operands*"))


def test_online_without_a_key_goes_offline_and_says_so_once(
    tmp_path: Path, make_record: MakeRecord, capfd: pytest.CaptureFixture[str]
) -> None:
    run = start(tmp_path, mode="online")
    run.log(0, {"loss": 1.0})
    run.finish(make_record())
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"warning: the W&B run is kept offline (upload it with `wandb sync {tmp_path}/")
    assert "No API key configured" in err
    assert err.count("\n") == 1
    assert any(entry["type"] == "history" for entry in inspect(tmp_path))


def test_failure_mid_run_warns_once_and_continues(make_record: MakeRecord, capsys: pytest.CaptureFixture[str]) -> None:
    class Dead:
        def log(self, row: dict[str, Any], step: int, commit: bool) -> None:
            raise ConnectionResetError("service\n is gone")

    run = WandbRun(Dead, {})
    run.log(0, {"loss": 1.0})
    run.log(1, {"loss": 1.0})
    run.finish(make_record())
    assert capsys.readouterr().err == "warning: the cell continues without W&B: service is gone\n"


def test_a_cell_does_not_wait_for_a_service_that_hangs(
    make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    release = threading.Event()
    run = WandbRun(release.wait, {})
    run.log(0, {"loss": 1.0})
    run.finish(make_record())
    assert capsys.readouterr().err == "warning: the cell continues without W&B: its service does not answer\n"
    release.set()


def test_wandb_that_is_not_installed_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="tracker=wandb needs wandb: pip install wandb, or type tracker=none"):
        start(tmp_path)


def test_tracker_none_writes_nothing(tmp_path: Path, make_record: MakeRecord) -> None:
    (tmp_path / "cell").mkdir()
    run = start(tmp_path / "cell", name="none")
    run.log(0, {"loss": math.nan})
    run.finish(dataclasses.replace(make_record(), ledger={}))
    assert isinstance(run, NoRun)
    assert not any((tmp_path / "cell").iterdir())


def test_a_run_id_has_safe_characters_and_keeps_the_cell() -> None:
    assert run_id("my grid/ä-0a1b2c3d", "cell") == "my-grid---0a1b2c3d-cell"
    assert run_id("g" * 200, "cell").endswith("g-cell")
    assert len(run_id("g" * 200, "cell")) == 128
