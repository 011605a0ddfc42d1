"""What a server receives from a cell, and what a failing server does to one."""

import math
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer
from runs import files_with, start, wandb_cli

from nangrid.records.cell import CellRecord

MakeRecord = Callable[..., CellRecord]

OUTCOME = ("onset_step", "onset_clock", "censored", "steps_survived", "status", "trains")
FAILURES = {"unauthorised": 401, "broken": 500, "hanging": 0, "dropping": -1}


def failing_cell(directory: Path, make_record: MakeRecord, mode: str) -> None:
    """Three steps, of which the last rings the gradient's clock and then the loss's."""
    run = start(directory, mode=mode)
    run.log(0, {"loss": 3.9, "grad_norm": 1.5, "nonfinite_gradient": 0})
    run.log(1, {"loss": 3.8, "grad_norm": math.inf, "nonfinite_gradient": 7, "nonfinite_parameter": 1})
    run.log(2, {"loss": math.nan, "grad_norm": math.nan, "nonfinite_loss": 1, "nonfinite_gradient": 9})
    run.finish(make_record({"gradient": 1, "loss": 2}, steps_done=3, ledger={"residual_stream": "fp16"}))


def assert_received(server: FakeServer) -> None:
    """All of failing_cell, wherever it came from."""
    history = server.history["grid-cell"]
    assert [history[line]["_step"] for line in sorted(history)] == [0, 1, 2]
    assert [history[line]["nonfinite/gradient"] for line in sorted(history)] == [0, 1, 1]
    assert [history[line]["nonfinite/loss"] for line in sorted(history)] == [0, 0, 1]
    assert [history[line]["grad_norm"] for line in sorted(history)][:2] == [1.5, math.inf]
    assert {key: server.summary["grid-cell"][key] for key in OUTCOME} == {
        "onset_step": 1,
        "onset_clock": "gradient",
        "censored": 0,
        "steps_survived": 1,
        "status": "nonfinite",
        "trains": 0,
    }
    config = server.config("grid-cell")
    assert (config["dtype"], config["dtype.storage"], config["seed"]) == ("fp16", "fp16", 0)
    assert config["ledger"] == {"residual_stream": "fp16"}
    assert server.runs["grid-cell"]["groupName"] == "grid"
    assert server.exit_codes == {"grid-cell": 0}
    (alert,) = server.alerts
    assert alert["text"] == "onset at step 1, clock gradient: dtype=fp16 seed=0"


def test_an_online_run_arrives(
    tmp_path: Path, make_record: MakeRecord, server: FakeServer, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    failing_cell(tmp_path, make_record, "online")
    assert_received(server)
    assert capfd.readouterr() == ("", "")
    assert files_with(tmp_path, key) == []


def test_synced_offline_run_arrives_unchanged(
    tmp_path: Path, make_record: MakeRecord, server: FakeServer, key: str
) -> None:
    failing_cell(tmp_path, make_record, "offline")
    assert server.paths == []
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    wandb_cli("sync", str(run))
    assert_received(server)
    assert files_with(tmp_path, key) == []


def test_a_cell_that_crashes_shows_as_failed(tmp_path: Path, server: FakeServer, key: str) -> None:
    start(tmp_path, mode="online").crash()
    assert server.exit_codes == {"grid-cell": 1}


def test_a_cell_that_runs_again_continues_its_run(
    tmp_path: Path, make_record: MakeRecord, server: FakeServer, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    killed = start(tmp_path, mode="online")
    for step in range(2):
        killed.log(step, {"loss": 4.0 - step})
    killed.crash()
    again = start(tmp_path, mode="online")
    for step in range(4):
        again.log(step, {"loss": 4.0 - step})
    again.finish(make_record())
    history = server.history["grid-cell"]
    assert [history[line]["_step"] for line in sorted(history)] == [0, 1, 2, 3]
    assert [history[line]["loss"] for line in sorted(history)] == [4.0, 3.0, 2.0, 1.0]
    assert list(server.runs) == ["grid-cell"]
    assert server.exit_codes == {"grid-cell": 0}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("status", FAILURES.values(), ids=FAILURES)
def test_a_cell_whose_server_fails_from_the_start_is_kept_for_later(
    tmp_path: Path,
    make_record: MakeRecord,
    server: FakeServer,
    key: str,
    capfd: pytest.CaptureFixture[str],
    status: int,
) -> None:
    server.status = status
    began = time.monotonic()
    failing_cell(tmp_path, make_record, "online")
    assert time.monotonic() - began < 6
    said = capfd.readouterr().err
    assert said.startswith("warning: the W&B run is kept offline (upload it with `wandb sync ")
    assert said.count("\n") == 1

    server.status = 200
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    wandb_cli("sync", str(run))
    assert_received(server)
    assert files_with(tmp_path, key) == []


@pytest.mark.parametrize("status", FAILURES.values(), ids=FAILURES)
def test_a_cell_whose_server_fails_in_the_middle_is_kept_for_later(
    tmp_path: Path,
    make_record: MakeRecord,
    server: FakeServer,
    key: str,
    capfd: pytest.CaptureFixture[str],
    status: int,
) -> None:
    run = start(tmp_path, mode="online")
    run.log(0, {"loss": 3.9})
    wait_for(lambda: "grid-cell" in server.runs)
    server.status = status
    began = time.monotonic()
    run.log(1, {"loss": 3.8})
    assert time.monotonic() - began < 0.1
    run.finish(make_record())
    assert time.monotonic() - began < 6
    said = capfd.readouterr().err
    assert said.startswith(
        "warning: W&B's server did not accept the whole run: upload it with `wandb sync --include-online "
    )
    assert said.count("\n") == 1

    server.status = 200
    wandb_cli(*shlex.split(said.split("`")[1].removeprefix("wandb ")))
    history = server.history["grid-cell"]
    assert [history[line]["loss"] for line in sorted(history)] == [3.9, 3.8]
    assert server.summary["grid-cell"]["censored"] == 1


def wait_for(event: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not event():
        assert time.monotonic() < deadline
        time.sleep(0.02)
