"""A cell's failing step is replayed later, in a new process, unchanged and under other levels."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

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
    (record,) = (r for r in grid.records()[0] if all(r.factors[key] == level for key, level in levels.items()))
    return grid.cell(record.cell_id)


def replay(directory: Path, *overrides: str) -> str:
    command = [sys.executable, "-m", "src.replay", str(directory), *overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("dtype", "init"), [("bf16", "zero"), ("fp16", "zero"), ("fp16", "mean")])
def test_another_process_gives_the_same_autopsy(grid: GridDirectory, dtype: str, init: str) -> None:
    said = replay(cell(grid, dtype=dtype, init=init))
    assert "identical to the recorded autopsy" in said and "CAUTION" not in said


def test_levels_that_save_the_step_and_levels_that_do_not(grid: GridDirectory) -> None:
    failing = cell(grid, dtype="bf16", init="zero")
    assert "survives: loss" in replay(failing, "init=mean")
    said = replay(failing, "dtype=fp32")
    assert "fails too (gradient)" in said and "zero-row-norm-gradient" in said
    *_, advice, command = said.splitlines()
    assert advice == "One step proves nothing. To verify:" and command.startswith("  python -m src.run ")
    assert "dtype=bf16" not in command


def test_levels_that_save_the_update_and_levels_that_do_not(grid: GridDirectory) -> None:
    failing = cell(grid, dtype="fp16", init="mean")
    assert "survives" in replay(failing, "upcast=trainable")
    assert "survives" in replay(failing, "optim.eps=1e-4")
    assert "survives" in replay(failing, "optim=paged_adamw_8bit")
    said = replay(failing, "checkpointing=off")
    assert "fails too (parameter)" in said and "adam-eps-underflow" in said


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.bos=true", "changes which step this is, not how it is computed"),
        ("seed=1", "changes which step this is"),
        ("targets=all_linear", "changes which step this is"),
        ("optim.lr=1e-5", "cannot change this step: its gradient was non-finite before the optimizer ran"),
        ("dtype=bf16", "The cell already has these levels"),
        ("dtype=bf61", "did you mean dtype=bf16?"),
        ("dtyp=bf16", "did you mean dtype?"),
    ],
)
def test_levels_that_cannot_change_the_step_are_refused(
    grid: GridDirectory, override: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(cell(grid, dtype="bf16", init="zero")), override]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1


def test_the_first_digits_of_a_cell_id_are_enough(grid: GridDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    failing = cell(grid, dtype="bf16", init="zero")
    assert main([str(failing)[:-4], "seed=1"]) == 2
    assert "seed=1 changes which step this is" in capsys.readouterr().err


def test_cells_without_a_failing_step_are_refused(
    grid: GridDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(cell(grid, dtype="bf16", init="mean"))]) == 2
    assert "has no failing step to replay: it is finite after 2 steps" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "is not the directory of a finished cell" in capsys.readouterr().err


def test_a_finite_step_is_replayed_under_other_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A snapshot kept by the watch: would the same step have survived in fp16 with torch's AdamW?"""
    common = ["model=tiny", "tracker=none", "horizon=3", "init=mean", "keep_every=2", f"out={tmp_path}"]
    assert run(common) == 0
    (kept,) = tmp_path.glob("cells/*/kept/2")
    said = replay(kept, "dtype=fp32")
    assert "step 2 of" in said and "(finite), replayed under dtype=fp32" in said
    said = replay(kept / "snapshot.json", "dtype=fp16", "optim=adamw_torch")
    assert "fails too" not in said and "fails (parameter)" in said and "adam-eps-underflow" in said
    capsys.readouterr()
    assert main([str(kept)]) == 2
    assert "is a step that was finite: give levels to replay it under" in capsys.readouterr().err


def test_states_that_no_cell_left_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trainer_state.json").write_text('{"global_step": 7}')
    assert main([str(tmp_path)]) == 2
    assert f"to take its next step, type python -m src.run start_from={tmp_path} horizon=1." in capsys.readouterr().err
    (tmp_path / "trainer_state.json").unlink()
    (tmp_path / "snapshot.json").write_text('{"step": 7}')
    assert main([str(tmp_path)]) == 2
    assert f"call nangrid.diagnose(..., start_from={str(tmp_path)!r})" in capsys.readouterr().err


def test_a_damaged_snapshot_is_named(grid: GridDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    failing = cell(grid, dtype="fp16", init="zero")
    tensors = failing / "snapshot.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-100])
    assert main([str(failing)]) == 2
    said = capsys.readouterr().err
    tensors.write_bytes(content)
    assert f"the snapshot in {failing} cannot be read" in said and len(said.splitlines()) == 1


def test_a_batch_that_does_not_fit_the_model_is_refused(
    grid: GridDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = cell(grid, dtype="bf16", init="zero")
    failing = tmp_path / "cells" / whole.name
    shutil.copytree(whole, failing)
    tensors = load_file(whole / "snapshot.safetensors")
    ids = "micro_batch/0/inputs/input_ids"
    for wrong in (tensors[ids] + 10**9, tensors[ids].float(), tensors[ids][:, :0].contiguous()):
        save_file(tensors | {ids: wrong}, failing / "snapshot.safetensors")
        assert main([str(failing)]) == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert sentence.startswith("step 0 cannot run from its snapshot (")
    facts = json.loads((whole / "snapshot.json").read_text())
    facts["groups"][0]["mapping"]["lr"] = "fast"
    (failing / "snapshot.json").write_text(json.dumps(facts))
    assert main([str(failing)]) == 2
    assert "cannot be read: a learning rate is no number." in capsys.readouterr().err
