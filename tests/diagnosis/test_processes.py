"""diagnose on cells of one and of two processes: a document of new tokens fails only where it is read at the start."""

import json
from pathlib import Path

import pytest

from nangrid.commands import diagnose, replay, run, why
from nangrid.records.autopsy import read_autopsy
from nangrid.records.explain.finding import finding_of
from nangrid.records.grid import GridDirectory, autopsy_of

COMMON = [
    "model=tiny", "model.layers=10", "data=jsonl", "data.packing=false", "data.bos=false", "data.length=16",
    "data.batch=1", "data.held_out=1", "vocab.size=2", "init=zero", "optim.lr=0.02", "horizon=4", "tracker=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the first step rank 1 reads a text of new tokens alone; one process reads it when their rows are trained."""
    folder = tmp_path_factory.mktemp("processes")
    words = ["apple", "river", "stone", "cloud", "green", "paper", "light", "music", "winter", "garden"]
    texts = [f"A {word} and a {other} zorble" for word in words for other in words[:3]]
    texts.insert(13, " zorble zorble zorble zorble")
    (folder / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    common = [*COMMON, f"data.path={folder / 'texts.jsonl'}", f"out={folder / 'grid'}"]
    failing, reference = ["processes=2", "checkpointing=off"], ["processes=1", "checkpointing=on"]
    assert diagnose.main([*common, "--seeds", "1", "--failing", *failing, "--reference", *reference]) == 0
    assert run.main(["-m", *common, "processes=2", "model.layers=6", "horizon=1"]) == 0
    return folder / "grid"


def test_two_processes_are_the_cause(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert why.main([str(grid)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "cause processes=2: 1 of 1 seeds fail (proven)" in told
    assert "change processes=1: 1 of 1 seeds train; proven" in told


def test_the_merged_autopsy_names_the_rank(grid: Path) -> None:
    records, errors = GridDirectory.open(grid).records()
    failing = [record for record in records if record.status == "nonfinite"]
    assert errors == [] and [record.factors["processes"] for record in failing] == [2, 2]
    for record in failing:
        cell = grid / "cells" / record.cell_id
        autopsy = autopsy_of(cell, record)
        assert autopsy is not None and (autopsy.rank, autopsy.step, autopsy.reproduced) == (1, 0, True)
        assert autopsy.mechanism == "zero-row-norm-gradient" and all(token.is_new for token in autopsy.tokens)
        assert (cell / "rank1" / "operation.py").exists() and (cell / str(record.snapshot)).exists()
        script = finding_of(autopsy, cell).operand_script
        assert script == str(cell / "rank1" / "operation.py")


def test_a_frozen_step_of_one_rank(grid: Path) -> None:
    (record,) = (r for r in GridDirectory.open(grid).records()[0] if r.trains.frozen_from == 0)
    autopsy = autopsy_of(grid / "cells" / record.cell_id, record)
    assert autopsy is not None and (autopsy.rank, autopsy.mechanism) == (1, "infinite-norm-freeze")
    assert read_autopsy(grid / "cells" / record.cell_id / "rank1" / "frozen") == autopsy


def test_what_needs_one_process_is_refused(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cell = next(path.parents[1] for path in grid.glob("cells/*/rank1/autopsy.json"))
    for folder in (cell, cell / "rank1"):
        assert replay.main([str(folder)]) == 2
        assert "trained on 2 processes, and a replay here would run on one" in capsys.readouterr().err
    for state in (cell, cell / "rank1" / "snapshot.json"):
        assert run.main([f"start_from={state}", f"out={grid.parent / 'other'}"]) == 2
        assert "processes=2 does not go with start_from" in capsys.readouterr().err
    assert run.main([f"start_from={cell}", "processes=1", f"out={grid.parent / 'other'}"]) == 2
    assert "each process has read its own part of the data" in capsys.readouterr().err
