"""`check` builds a cell and inspects it, and neither trains nor writes anything."""

from pathlib import Path

import pytest

from nangrid.commands.check import main

TINY = ["model=tiny", "data=glossary", "data.bos=false", "tracker=none"]


def test_a_cell_in_trouble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "grid"
    assert main([*TINY, f"out={out}", "dtype=silent_fp16", "init=zero", "optim=adamw_torch"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith("error: ") and "nothing was trained" in said.err
    found = {line.split(": ")[1] for line in lines}
    assert {"zero-rows", "adam-eps-underflow", "silent-fp16-storage", "new-tokens-alone"} <= found
    assert not out.exists()


def test_a_cell_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=tiny", "tracker=none", f"out={tmp_path / 'grid'}", "dtype=fp32", "init=normal"]) == 0
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("0 errors, 0 warnings, 0 notes")


def test_what_cannot_be_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init=maen"]) == 2
    assert "did you mean init=mean?" in capsys.readouterr().err
