"""Cells and the default grid on a GPU."""

from pathlib import Path

import pytest
from _pytest.capture import CaptureFixture

from nangrid.records.grid import GridDirectory

pytest.importorskip("hydra")
pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.cuda


def cells(out: Path, *arguments: str) -> GridDirectory:
    from nangrid.commands.run import main

    assert main(["-m", "model=tiny", "tracker=none", f"out={out}", *arguments]) == 0
    return GridDirectory.open(out)


def test_default_grid(device: str, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    size = [] if device == "cuda" else ["dtype=bf16", "upcast=none", "optim=paged_adamw_8bit", "model.layers=2"]
    grid = cells(tmp_path, "+experiment=default", "horizon=4", "hydra.launcher.n_jobs=2", *size)
    records, errors = grid.records()
    assert records and not errors
    assert {record.status for record in records} <= {"finite", "nonfinite"}
    assert all((record.environment["device"] == "cpu") == (device == "cpu") for record in records)
    for record in records:
        assert record.factors["dtype"] != "bf16" or record.status == "finite"


def test_amp_fp16_cell(gpu: str, tmp_path: Path) -> None:
    (record,) = cells(tmp_path, "dtype=amp_fp16", "init=mean", "horizon=4").records()[0]
    assert record.error is None and record.factors["dtype.autocast"] == "fp16"
