"""The failing step of a cell on another day, in a process of its own, as it was and under other levels."""

import subprocess
import sys
from pathlib import Path

import pytest

from nangrid.commands.replay import main
from nangrid.commands.run import main as run
from nangrid.records.grid import GridDirectory


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> GridDirectory:
    """Zero rows: gradients at step 0. fp16 adapters under torch's AdamW: parameters at step 0. bf16: none."""
    out = tmp_path_factory.mktemp("grid")
    common = ["-m", "model=tiny", "model.layers=12", "tracker=none", "horizon=2", f"out={out}"]
    common += ["data=glossary", "data.bos=false", "hydra.launcher.n_jobs=2"]
    assert run([*common, "dtype=bf16,fp16", "init=zero"]) == 0
    assert run([*common, "dtype=bf16,fp16", "init=mean", "optim=adamw_torch"]) == 0
    return GridDirectory.open(out)


def cell(grid: GridDirectory, **levels: str) -> Path:
    (found,) = (r for r in grid.records()[0] if all(r.factors[key] == level for key, level in levels.items()))
    return grid.cell(found.cell_id)


def replay(directory: Path, *overrides: str) -> str:
    command = [sys.executable, "-m", "src.replay", str(directory), *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("dtype", "init"), [("bf16", "zero"), ("fp16", "zero"), ("fp16", "mean")])
def test_another_process_gives_the_same_autopsy(grid: GridDirectory, dtype: str, init: str) -> None:
    said = replay(cell(grid, dtype=dtype, init=init))
    assert "as in the recorded autopsy" in said and "CAUTION" not in said


def test_what_would_have_saved_the_step(grid: GridDirectory) -> None:
    failing = cell(grid, dtype="bf16", init="zero")
    assert "survives: loss" in replay(failing, "init=mean")
    said = replay(failing, "dtype=fp32")
    assert "fails too (gradient)" in said and "zero-row-norm-gradient" in said
    assert "One step is not a cure: python -m src.run" in said and "dtype=bf16" not in said.splitlines()[-1]


def test_what_would_have_saved_the_update(grid: GridDirectory) -> None:
    failing = cell(grid, dtype="fp16", init="mean")
    assert "survives" in replay(failing, "upcast=trainable")
    assert "survives" in replay(failing, "optim.eps=1e-4")
    assert "survives" in replay(failing, "optim=paged_adamw_8bit")
    said = replay(failing, "checkpointing=off")
    assert "fails too (parameter)" in said and "adam-eps-underflow" in said


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.bos=true", "asks for another run, not for this step in another way"),
        ("seed=1", "asks for another run"),
        ("targets=all_linear", "asks for another run"),
        ("optim.lr=1e-5", "cannot change this step: its gradient rang before the optimizer's part"),
        ("dtype=bf16", "These are the levels that the cell had"),
        ("dtype=bf61", "did you mean dtype=bf16?"),
        ("dtyp=bf16", "did you mean dtype?"),
    ],
)
def test_questions_that_make_no_sense(
    grid: GridDirectory, override: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(cell(grid, dtype="bf16", init="zero")), override]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


def test_the_first_digits_of_the_id_will_do(grid: GridDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    failing = cell(grid, dtype="bf16", init="zero")
    assert main([str(failing)[:-4], "seed=1"]) == 2
    assert "seed=1 asks for another run" in capsys.readouterr().err


def test_what_cannot_be_replayed(grid: GridDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(cell(grid, dtype="bf16", init="mean"))]) == 2
    assert "has no failing step to replay: it is finite after 2 steps" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "is not the directory of a finished cell" in capsys.readouterr().err


def test_a_step_that_was_finite_under_other_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A snapshot that the watch kept: would the same step have gone well in fp16, with torch's AdamW?"""
    common = ["model=tiny", "tracker=none", "horizon=3", "init=mean", "keep_every=2", f"out={tmp_path}"]
    assert run(common) == 0
    (kept,) = tmp_path.glob("cells/*/kept/2")
    assert "step 2 of" in replay(kept, "dtype=fp32") and "(finite), the same batch" in replay(kept, "dtype=fp32")
    said = replay(kept / "snapshot.json", "dtype=fp16", "optim=adamw_torch")
    assert "fails too" not in said and "fails (parameter)" in said and "adam-eps-underflow" in said
    capsys.readouterr()
    assert main([str(kept)]) == 2
    assert "is a step that was finite: give levels to replay it under" in capsys.readouterr().err


def test_what_is_no_cells_is_sent_where_it_belongs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trainer_state.json").write_text('{"global_step": 7}')
    assert main([str(tmp_path)]) == 2
    assert f"src.run start_from={tmp_path} horizon=1 takes its next step" in capsys.readouterr().err
    (tmp_path / "trainer_state.json").unlink()
    (tmp_path / "snapshot.json").write_text('{"step": 7}')
    assert main([str(tmp_path)]) == 2
    assert "nangrid.diagnose takes start_from=" in capsys.readouterr().err


def test_a_damaged_snapshot_is_named(grid: GridDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    failing = cell(grid, dtype="fp16", init="zero")
    tensors = failing / "snapshot.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-100])
    assert main([str(failing)]) == 2
    said = capsys.readouterr().err
    tensors.write_bytes(content)
    assert f"the snapshot in {failing} cannot be read" in said and len(said.splitlines()) == 1
