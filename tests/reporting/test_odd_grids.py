"""No grid breaks the report, and the report says nothing false of it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from odd_grids import GRIDS, NAMES
from rich.console import Console

from nangrid.analysis.evidence import Evidence, gather
from nangrid.analysis.onsets import onset_pivot, write_onsets
from nangrid.commands.report import main as report
from nangrid.records.autopsy import Autopsy, write_autopsy
from nangrid.records.cell import CellError, CellRecord, Trains, write_record
from nangrid.records.grid import GridDirectory
from nangrid.records.history import write_history
from nangrid.reporting.report import report_html
from nangrid.reporting.terminal import grid_summary

MakeRecord = Callable[..., CellRecord]

DRAWN = ("all crashed", "only seeds", "frozen, then non-finite", "factors named level and cells")
FIGURES = ("autopsy_figure", "effects_figure", "survival_figure", "traces_figure")


def autopsy() -> Autopsy:
    nothing: dict[str, Any] = dict.fromkeys(Autopsy.__dataclass_fields__)
    lists = {name: [] for name in ("inputs", "path", "tokens", "parameters", "evidence", "suggestions")}
    texts = dict.fromkeys(("clock", "op", "module", "source", "node", "dtype", "explanation"), "")
    known = {"step": 0, "micro_batch": 0, "dtype_max": 65504.0, "schema": 1, "reproduced": True}
    event = {"mechanism": "fp16-activation-overflow", "phase": "forward", "kind": "overflow"}
    return Autopsy(**nothing | lists | texts | known | event)


@dataclass(frozen=True)
class Told:
    """What the report says of one grid."""

    evidence: Evidence
    page: str
    printed: str

    @property
    def causes(self) -> list[str]:
        """The causes that the verdict states."""
        return [line.split(" (")[0].strip() for line in self.evidence.verdict if "sufficient:" in line]


def write(path: Path, name: str, make_record: MakeRecord) -> GridDirectory:
    """One of the grids on disk."""
    grid = GridDirectory.open(path)
    for number, row in enumerate(GRIDS[name]):
        loss, onset, crashed = row.get("loss", 3.0), row.get("onset"), row.get("crashed", False)
        failed = {"loss": onset} if onset is not None and not crashed else None
        fields: dict[str, Any] = {"cell_id": f"{number:012x}", "factors": row["factors"]}
        fields |= {"trains": Trains(row.get("frozen"), [], 1e-3, loss, loss), "horizon": row.get("horizon", 16)}
        fields |= {"autopsy": "autopsy.json"} if failed else {}
        fields |= {"steps_done": row["steps"]} if "steps" in row and not failed else {}
        fields |= {"status": "error", "error": CellError("RuntimeError", "boom", "")} if crashed else {}
        record = make_record(failed, **fields)
        directory = grid.cell(record.cell_id)
        directory.mkdir(parents=True)
        write_history(directory, [{"step": s, "loss": loss, "grad_norm": 1.0} for s in range(record.steps_done)])
        if failed:
            write_autopsy(directory, autopsy())
        write_record(directory, record)
    return grid


@pytest.fixture(scope="module")
def known() -> dict[str, Told]:
    """The grids that a test has reported already."""
    return {}


@pytest.fixture
def told(
    make_record: MakeRecord, tmp_path: Path, known: dict[str, Told], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Told]:
    """What the report says of a grid, without a warning. Figures take seconds: most grids do without."""

    def report_once(name: str) -> Told:
        if name not in known:
            for figure in FIGURES if name not in DRAWN else ():
                monkeypatch.setattr(f"nangrid.reporting.report.{figure}", lambda *_: "")
            grid = write(tmp_path / "grid", name, make_record)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                evidence = gather(grid, None)
                write_onsets(grid, evidence.onsets)
                console = Console(file=StringIO(), width=100)
                console.print(grid_summary(evidence.onsets, onset_pivot(evidence.onsets)))
                known[name] = Told(evidence, report_html(evidence), console.file.getvalue())  # type: ignore[attr-defined]
        return known[name]

    return report_once


@pytest.mark.parametrize("name", GRIDS)
def test_it_is_reported(name: str, told: Callable[[str], Told]) -> None:
    said = told(name)
    assert len(said.page) > 1000 and f"{len(GRIDS[name])} cells: " in said.printed
    for row in GRIDS[name]:
        levels = " ".join(f"{factor}={level}" for factor, level in row["factors"].items() if factor != "seed")
        assert row.get("onset") is not None or "frozen" in row or f"sufficient: {levels}" not in said.causes


@pytest.mark.parametrize("name", ["negative losses", "losses of zero", "a short cell", "frozen, then non-finite"])
def test_the_cause_is_found_all_the_same(name: str, told: Callable[[str], Told]) -> None:
    assert told(name).causes == ["sufficient: A=a1"]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("true or a name", "A=unsloth"), ("0 or a name", "A=auto"), ("1 or true", "A=True"), ("1, 1.0 or 2", "A=2"),
        ("true or its text", "A='True'"), ("nan", "A=nan"), ("null", "A=x"), ("mixed levels", "A=x"),
    ],
)  # fmt: skip
def test_levels_of_several_kinds_are_told_apart(name: str, cause: str, told: Callable[[str], Told]) -> None:
    assert told(name).causes == [f"sufficient: {cause}"]


@pytest.mark.parametrize("names", NAMES)
def test_a_factor_may_have_the_name_of_a_column(names: tuple[str, str], told: Callable[[str], Told]) -> None:
    (cause,) = told(f"factors named {' and '.join(names)}").causes
    assert cause.replace("factor.", "") == f"sufficient: {names[0]}=a1"


def test_a_short_cell_cuts_no_mean_and_is_named(told: Callable[[str], Told]) -> None:
    evidence = told("a short cell").evidence
    assert set(evidence.contrasts.query("factor == 'A'")["difference"]) == {-16.0}
    assert any("1 of them stopped earlier and is censored there" in line for line in evidence.limits)


def test_a_frozen_cell_that_crashed_is_a_crash_everywhere(told: Callable[[str], Told]) -> None:
    evidence = told("frozen, then crashed").evidence
    assert evidence.times["event"].isna().all() and evidence.rates["met"].sum() == 0
    assert not any("infinite-norm-freeze" in line for line in evidence.verdict)


def test_the_notebook_of_one(make_record: MakeRecord, tmp_path: Path) -> None:
    grid = write(tmp_path / "grid", "mixed levels", make_record)
    assert report([str(grid.path)]) == 0
    assert "sufficient: A=x" in (grid.path / "onset_report.html").read_text()
