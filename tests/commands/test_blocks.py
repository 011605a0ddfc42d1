"""A design that is no single product: the union of its blocks, crossed with what the command line sweeps."""

from pathlib import Path

import pytest

from nangrid.commands.run import main as run


def cells(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split("to run")[1].strip() for line in capsys.readouterr().out.splitlines() if "to run  " in line]


def test_the_grid_is_the_union_of_the_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = "hydra.sweeper.blocks=['dtype=bf16,fp16 init=zero','dtype=fp16 init=zero,mean']"
    command = ["-m", "model=tiny", "tracker=none", f"out={tmp_path}", "dry_run=true", blocks]
    assert run(command) == 0
    assert sorted(cells(capsys)) == ["dtype=bf16 init=zero", "dtype=fp16 init=mean", "dtype=fp16 init=zero"]


def test_the_command_line_wins_over_blocks_and_crosses_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = "hydra.sweeper.blocks=['dtype=bf16 init=zero','dtype=fp16 init=mean']"
    command = ["-m", "model=tiny", "tracker=none", f"out={tmp_path}", "dry_run=true", blocks, "init=zero", "seed=0,1"]
    assert run(command) == 0
    assert sorted(cells(capsys)) == [
        "dtype=bf16 seed=0", "dtype=bf16 seed=1", "dtype=fp16 seed=0", "dtype=fp16 seed=1"
    ]  # fmt: skip
