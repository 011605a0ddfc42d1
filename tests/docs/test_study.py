"""The committed study is what its committed records say, and its notebook runs on them."""

import io
import json
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from nangrid.analysis.evidence import Evidence, gather
from nangrid.cell.config import CONF_DIR
from nangrid.records.grid import GridDirectory
from nangrid.reporting.notebook import execute

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "docs" / "peft1715"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    with tarfile.open(STUDY / "records.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "peft1715"


@pytest.fixture(scope="module")
def evidence(grid: Path) -> Evidence:
    return gather(GridDirectory.at(grid), CONF_DIR / "hypotheses")


def test_it_is_complete_and_within_its_bound(evidence: Evidence) -> None:
    assert len(evidence.records) == 147 <= 150
    assert set(evidence.onsets["status"]) == {"finite", "nonfinite"}, "no crash, no timeout"


def test_the_onset_table_is_that_of_the_records(evidence: Evidence) -> None:
    committed = pd.read_csv(STUDY / "onsets.csv", dtype=str, keep_default_na=False)
    made = pd.read_csv(io.StringIO(evidence.onsets.to_csv(index=False)), dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(made, committed)


def test_every_hypothesis_is_decided_or_said_not_to_be_testable(evidence: Evidence) -> None:
    verdicts = evidence.hypotheses.groupby("name", sort=False)["verdict"].first().to_dict()
    told = json.loads((STUDY / "hypotheses.json").read_text())
    assert verdicts == told


def test_its_notebook_runs(grid: Path, tmp_path: Path) -> None:
    parameters = {"GRID": str(grid), "HYPOTHESES": str(CONF_DIR / "hypotheses")}
    execute(ROOT / "notebooks" / "peft1715.py", tmp_path, parameters)
    assert "fp16-gradient-overflow" in (tmp_path / "peft1715.html").read_text()
