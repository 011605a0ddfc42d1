"""A run that fails late: its last steps alone are run again, under other levels."""

from pathlib import Path

import pandas as pd
import pytest

from nangrid.commands.diagnose import main as diagnose
from nangrid.commands.report import main as report
from nangrid.commands.run import main as run
from nangrid.records.grid import GridDirectory
from nangrid.records.history import read_history

HORIZON = 30


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A learning rate so large that adapters grow until a float16 residual stream overflows, steps later."""
    out = tmp_path_factory.mktemp("failed")
    levels = ["model=tiny", "model.layers=2", "dtype=silent_fp16", "init=mean", "optim.lr=4", "targets.rank=8"]
    assert run([*levels, f"horizon={HORIZON}", "keep_every=2", "tracker=none", f"out={out}"]) == 0
    (record,) = GridDirectory.open(out).records()[0]
    assert record.onset is not None and record.onset.step > 2 and record.snapshot is not None
    return out / "cells" / record.cell_id


def history(cell: Path) -> pd.DataFrame:
    return read_history(cell).drop(columns="seconds")


def test_it_fails_again_at_the_same_step_with_the_same_bits(failed: Path, tmp_path: Path) -> None:
    assert run([f"start_from={failed}", "horizon=8", "tracker=none", f"out={tmp_path}"]) == 0
    (again,) = GridDirectory.open(tmp_path).records()[0]
    whole = history(failed)
    rest = whole[whole["step"] >= again.first_step].reset_index(drop=True)
    pd.testing.assert_frame_equal(history(tmp_path / "cells" / again.cell_id), rest, check_exact=True)
    assert again.first_step > 0 and again.onset is not None
    assert again.steps_survived == again.onset.step - again.first_step
    assert again.factors["targets.rank"] == 8 and again.factors["optim.lr"] == 4


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "targets.rank=16",
            "targets.rank=16 cannot change in the middle of a run (the weights trained so far",
        ),
        ("vocab.size=32", "vocab.size=32 cannot change in the middle of a run"),
        ("data.bos=false", "leave it at data.bos=True"),
        ("seed=1", "seed=1 cannot change in the middle of a run"),
        ("optim=adafactor", "Adafactor cannot use the state of the run's optimizer"),
    ],
)
def test_what_cannot_change_is_refused(
    failed: Path, override: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([f"start_from={failed}", override, "tracker=none", f"out={tmp_path}"]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.glob("cells/*/result.json"))


def test_no_place_to_start_from_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([f"start_from={tmp_path}"]) == 2
    assert "holds neither a snapshot nor a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["1e400", "-1", '"3"', "null", "1" * 40, "[3]", "3.0"])
def test_a_step_that_is_no_number_of_steps_is_refused(
    step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, key in (("trainer_state.json", "global_step"), ("snapshot.json", "step")):
        folder = tmp_path / key
        folder.mkdir()
        (folder / file).write_text(f'{{"{key}": {step}}}')
        assert run([f"start_from={folder}", f"out={tmp_path / 'out'}"]) == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert sentence.startswith(f"{folder / file} cannot be read ({key} is ") or "64 bits" in sentence
    assert not (tmp_path / "out").exists()


def test_causes_and_cures_from_a_few_of_its_steps(
    failed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [f"start_from={failed}", "tracker=none", f"out={tmp_path}", "horizon=8"]
    assert diagnose([*command, "--n-jobs", "2", "--reference", "dtype=fp32", "optim.lr=1e-3"]) == 0
    said = capsys.readouterr().out
    assert "resumed at step" in said
    # whether a lower rate alone helps, so close to the onset, differs between processors
    assert "sufficient: dtype=silent_fp16" in said
    assert "cure: dtype=fp32" in said
    records, _ = GridDirectory.open(tmp_path).records()
    assert all(record.first_step > 0 and record.steps_done <= 16 for record in records)

    assert report([str(tmp_path)]) == 0
    assert " resume run " in (tmp_path / "report.html").read_text()

    assert diagnose([*command, "--seeds", "2", "--reference", "dtype=fp32"]) == 2
    assert "has its own seed" in capsys.readouterr().err
