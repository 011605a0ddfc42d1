"""The same grid on a real Slurm as on this machine: `make test-slurm`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from cluster import cluster, missing

from nangrid.commands.run import main
from nangrid.grid.progress import read_progress
from nangrid.records.cell import CellRecord
from nangrid.records.grid import GridDirectory
from nangrid.records.history import read_history

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.usefixtures("heeded_signals"),
    pytest.mark.skipif(bool(missing()), reason=f"not on this machine: {', '.join(missing())}"),
]

LEVELS = ["-m", "model=tiny", "data=glossary", "data.bos=false", "dtype=bf16,fp32", "init=zero,mean", "tracker=none"]
SLURM = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1"]


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with cluster(tmp_path_factory.mktemp("slurm")):
        yield


def records(out: Path) -> dict[str, CellRecord]:
    found, errors = GridDirectory.open(out).records()
    assert errors == []
    return {record.cell_id: record for record in found}


def launch(out: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "src.run", *LEVELS, *SLURM, f"out={out}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def running(out: Path) -> list[int]:
    """The processes of the cells that have begun a step."""
    found = [read_progress(cell) for cell in (out / "cells").glob("*")]
    return [progress.pid for progress in found if progress and progress.steps_done]


def test_the_onset_table_is_the_isolated_launchers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, there = tmp_path / "isolated", tmp_path / "slurm"
    assert main([*LEVELS, "horizon=3", "hydra.launcher.n_jobs=2", f"out={here}"]) == 0
    assert main([*LEVELS, *SLURM, "horizon=3", f"out={there}"]) == 0
    with capsys.disabled():
        print(f"\nisolated:\n{(here / 'onsets.csv').read_text()}\nSlurm:\n{(there / 'onsets.csv').read_text()}")
    assert (here / "onsets.csv").read_text() == (there / "onsets.csv").read_text()
    assert [r.status for r in records(there).values()].count("nonfinite") == 2
    for cell_id, record in records(there).items():
        assert "SLURM" not in str(record.overrides)
        frames = [read_history(out / "cells" / cell_id).drop(columns="seconds") for out in (here, there)]
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert main([*LEVELS, *SLURM, "horizon=3", f"out={there}"]) == 0
    assert len(list(there.glob(".submitit-*/*_0"))) == 1, "finished cells are not submitted again"


def test_a_killed_job_leaves_its_cell_unfinished_and_the_same_command_runs_it(tmp_path: Path) -> None:
    launcher = launch(tmp_path, "init=mean", "horizon=60")
    wait_for(lambda: len(running(tmp_path)) == 2)
    os.kill(running(tmp_path)[0], signal.SIGKILL)
    _, said = launcher.communicate(timeout=200)
    assert launcher.returncode == 1, said
    assert "1 of 2 cells are unfinished" in said and "SIGKILL" in said
    assert len(records(tmp_path)) == 1
    again = launch(tmp_path, "init=mean", "horizon=60")
    _, said = again.communicate(timeout=200)
    assert again.returncode == 0, said
    assert {record.status for record in records(tmp_path).values()} == {"finite"}
    assert len(records(tmp_path)) == 2


def test_interrupt_cancels_the_jobs_and_leaves_the_cells_unfinished(tmp_path: Path) -> None:
    launcher = launch(tmp_path, "init=mean", "horizon=500")
    wait_for(lambda: len(running(tmp_path)) == 2)
    launcher.send_signal(signal.SIGINT)
    launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    wait_for(lambda: not subprocess.run(["squeue", "--noheader"], capture_output=True, text=True).stdout)
    assert records(tmp_path) == {}


def test_a_job_past_its_time_is_a_timeout(tmp_path: Path) -> None:
    launcher = launch(
        tmp_path,
        "init=mean",
        "dtype=fp32",
        "horizon=5000",
        "hydra.launcher.timeout_min=1",
        "hydra.launcher.signal_delay_s=5",
    )
    _, said = launcher.communicate(timeout=300)
    (record,) = records(tmp_path).values()
    assert launcher.returncode == 1, said
    assert record.status == "timeout" and record.steps_done > 0


def test_a_job_that_crashes_is_an_error_with_its_log(tmp_path: Path) -> None:
    launcher = launch(tmp_path, "init=mean", "dtype=fp32", "horizon=500")
    wait_for(lambda: len(running(tmp_path)) == 1)
    os.kill(running(tmp_path)[0], signal.SIGSEGV)
    _, said = launcher.communicate(timeout=200)
    (record,) = records(tmp_path).values()
    assert launcher.returncode == 1 and record.status == "error", said
    assert record.error and "SIGSEGV" in record.error.message


def test_what_slurm_refuses_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*LEVELS, *SLURM, f"out={tmp_path}", "hydra.launcher.partition=nowhere"]) == 2
    error = capsys.readouterr().err
    assert "Slurm took none of the jobs" in error and "partition" in error
