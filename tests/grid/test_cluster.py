"""Cells as jobs of a batch system: by submitit's local executor here, by a real Slurm in tests/slurm."""

import os
from pathlib import Path

import pytest
from fake_cell import starts_file

from nangrid.commands.run import main
from nangrid.grid.cluster import slurm_exit_reason
from nangrid.records.cell import read_record
from nangrid.records.grid import GridDirectory

LOCAL = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]


@pytest.fixture(autouse=True)
def jobs_find_the_fake_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr("nangrid.grid.cluster.POLL_S", 1.0)
    monkeypatch.setattr("nangrid.grid.cluster.VISIBLE_S", 1.0)


def run(out: Path, *arguments: str) -> int:
    return main(["-m", f"out={out}", "model=tiny", "tracker=none", *LOCAL, *arguments])


def test_jobs_leave_the_records_that_processes_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "seed=0,1,2,4,7") == 1
    shown = capsys.readouterr()
    assert "2 of 5 cells crashed" in shown.err
    assert "1 of 5 cells are unfinished" in shown.err and "the job ended" in shown.err
    grid = GridDirectory.open(tmp_path)
    found = {record.factors["seed"]: record for record in grid.records()[0]}
    assert {seed: record.status for seed, record in found.items()} == {
        0: "finite",
        1: "nonfinite",
        2: "error",
        7: "error",
    }
    assert {record.grid_id for record in found.values()} == {grid.grid_id}
    assert found[2].error and "said by a grandchild" in found[2].error.log_tail
    assert found[7].error and found[7].error.type == "OutOfMemory"
    assert found[0].overrides[-1] == "seed=0"

    assert run(tmp_path, "seed=0,1") == 0, "done cells are not submitted again"
    assert [len(starts_file(cell).read_text().split()) for cell in grid.cells()] == [1] * 5


def test_a_job_that_refuses_its_cell_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "seed=6") == 2
    assert "vocab.size=9999" in capsys.readouterr().err


def test_a_moved_grid_runs_where_it_is_now(tmp_path: Path) -> None:
    from nangrid.grid.worker import run_requested

    assert run(tmp_path / "here", "seed=4") == 1
    (tmp_path / "here").rename(tmp_path / "there")
    (cell,) = GridDirectory.open(tmp_path / "there").cells()
    request = (cell / "request.json").read_text()
    (cell / "request.json").write_text(request.replace('"seed": 4', '"seed": 0'))
    pid = os.fork()
    if pid == 0:
        run_requested(str(cell), "fake_cell")
        os._exit(0)
    os.waitpid(pid, 0)
    record = read_record(cell)
    assert record and record.status == "finite" and not (tmp_path / "here").exists()


def test_a_machine_without_slurm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "grid"
    assert main(["-m", f"out={out}", "model=tiny", "hydra/launcher=submitit_slurm", "seed=0,1"]) == 2
    assert "needs Slurm's srun and sbatch, and this machine has none" in capsys.readouterr().err
    assert not out.exists()


def test_launchers_that_mix_cells_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", f"out={tmp_path}", "model=tiny", "hydra/launcher=basic", "seed=0,1"]) == 2
    assert "hydra/launcher=basic runs cells in one process" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("state", "exit_code", "status", "says"),
    [
        ("OUT_OF_MEMORY", "0", "error", "more memory"),
        ("TIMEOUT", "0", "timeout", "time limit"),
        ("FAILED", "768", "error", "exit code 3"),
        ("FAILED", "9", None, "SIGKILL"),
        ("FAILED", "35072", None, "SIGKILL"),
        ("FAILED", "35584", "error", "SIGSEGV"),
        ("FAILED", "0:9", None, "SIGKILL"),
        ("FAILED", "139:0", "error", "SIGSEGV"),
        ("CANCELLED", "15", None, "CANCELLED"),
        ("NODE_FAIL", "0", None, "NODE_FAIL"),
        ("GONE", "", None, "GONE"),
    ],
)
def test_slurm_states_map_to_exit_reasons(state: str, exit_code: str, status: str | None, says: str) -> None:
    reason = slurm_exit_reason(state, exit_code)
    assert reason.status == status and says in reason.message
