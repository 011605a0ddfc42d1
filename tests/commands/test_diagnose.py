"""From two end points to all causes and cures, by few cells; every one a real tiny cell."""

import json
from pathlib import Path

import jsonschema
import pytest

from nangrid.commands.diagnose import main
from nangrid.records.grid import GridDirectory
from nangrid.records.output.schemas import path_of

COMMON = ["model=tiny", "model.layers=4", "data=glossary", "data.bos=false", "horizon=4", "tracker=none"]


def test_the_cause_and_the_cures_of_zero_rows_in_halves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """fp16 brings two mechanisms: zero rows overflow its gradients, and torch's AdamW loses its eps."""
    failing = ["init=zero", "dtype=fp16", "optim=adamw_torch"]
    reference = ["init=mean", "dtype=fp32", "optim=paged_adamw_8bit"]
    options = [*["--n-jobs", "2", "--seeds", "2"], "--failing", *failing, "--reference", *reference]
    command = [*COMMON, f"out={tmp_path}", *options]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "fp16-gradient-overflow (backward overflow) at step 0" in said
    sufficient = [line.split("(")[0].strip() for line in said.splitlines() if line.startswith("  sufficient")]
    cures = {line.split("(")[0].strip() for line in said.splitlines() if line.startswith("  cure")}
    assert sufficient == ["sufficient: init=zero dtype=fp16"]
    assert cures == {"cure: init=mean dtype=fp32", "cure: init=mean optim=paged_adamw_8bit"}
    assert said.count("2 of 2 seeds") == 3 and "narrowed to: dtype.storage=fp16" in said

    records, _ = GridDirectory.open(tmp_path).records()
    written = {
        record.cell_id: (tmp_path / "cells" / record.cell_id / "result.json").stat().st_mtime_ns for record in records
    }
    assert main([*command, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    jsonschema.validate(value, json.loads(path_of("diagnose").read_text()))
    assert value["answer"]["events"][0]["causes"][0]["levels"] == ["init=zero", "dtype=fp16"]
    assert value["answer"]["events"][0]["certainty"]["grade"] == "proven"
    assert all((tmp_path / "cells" / c / "result.json").stat().st_mtime_ns == t for c, t in written.items())


def test_a_late_onset_is_replayed_with_one_change_undone_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nangrid.diagnosis.ranking.LATE", 0)
    sides = ["--failing", "init=zero", "dtype=fp16", "seed=1", "--reference", "init=mean", "dtype=fp32", "seed=1"]
    assert main([*COMMON, f"out={tmp_path}", "--seeds", "1", *sides]) == 0
    said = capsys.readouterr().out
    assert "  without init=zero the step survives" in said
    assert "  without dtype=fp16 the step fails too" in said, "in float32 the norm of the gradients is inf as well"
    assert "sufficient: init=zero dtype=fp16" in said


@pytest.mark.parametrize(
    ("failing", "reference", "sentence"),
    [
        (["init=mean"], ["init=mean"], "--failing and --reference are the same cell"),
        (["init=maen"], ["init=mean"], "did you mean init=mean?"),
        (["init=mean"], ["init=normal"], "--failing does not fail in 4 steps"),
        (["init=zero"], ["init=zero", "dtype=fp32"], "--reference fails too (infinite-norm-freeze"),
    ],
)
def test_invalid_end_points_are_refused(
    failing: list[str], reference: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMON, f"out={tmp_path}", "--failing", *failing, "--reference", *reference]) == 2
    assert sentence in capsys.readouterr().err
