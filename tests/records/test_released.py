"""Records that an earlier release wrote still open, under today's schemas."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nangrid.grid.plan import requested_plan
from nangrid.grid.request import CELL, SCRIPT, read_request
from nangrid.records import mechanisms
from nangrid.records.autopsy import AUTOPSY, Autopsy, Suggestion, read_autopsy, write_autopsy
from nangrid.records.errors import RecordError
from nangrid.records.grid import GridDirectory, read_verified
from nangrid.records.safety.names import GROUPS

ARCHIVE = Path(__file__).parents[2] / "docs" / "peft1715" / "records.tar.xz"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> GridDirectory:
    folder = tmp_path_factory.mktemp("released")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return GridDirectory.at(folder / "peft1715")


def test_every_released_cell_opens_with_its_history_and_autopsy(grid: GridDirectory) -> None:
    records, errors = grid.records()
    assert (len(records), errors) == (147, [])
    assert [read_verified(directory) for directory in grid.cells()] == records
    assert len(grid.autopsies(records)) == 65


def test_released_suggestions_become_overrides(grid: GridDirectory) -> None:
    autopsies = grid.autopsies(grid.records()[0]).values()
    written = [json.loads(path.read_text()) for path in grid.path.rglob(AUTOPSY)]
    assert {autopsy["schema"] for autopsy in written} == {1} and {autopsy.schema for autopsy in autopsies} == {4}
    advice = {suggestion.advice for autopsy in autopsies for suggestion in autopsy.suggestions}
    assert advice == {text for autopsy in written for text in autopsy["suggestions"]}
    assert Suggestion("dtype=bf16", "dtype=bf16") in [s for autopsy in autopsies for s in autopsy.suggestions]
    assert not any(autopsy.preexisting for autopsy in autopsies)


def schema_1(grid: GridDirectory, tmp_path: Path, **changes: Any) -> Autopsy:
    path = sorted(grid.path.glob(f"cells/*/{AUTOPSY}"))[0]
    (tmp_path / AUTOPSY).write_text(json.dumps(json.loads(path.read_text()) | changes))
    autopsy = read_autopsy(tmp_path)
    assert autopsy is not None
    return autopsy


def test_advice_in_words_is_no_override(grid: GridDirectory, tmp_path: Path) -> None:
    written = ["optim.lr=... a tenth", "optim.warmup=10", "pass dtype= to from_pretrained"]
    assert schema_1(grid, tmp_path, suggestions=written).suggestions == [
        Suggestion("optim.lr=... a tenth"),
        Suggestion("optim.warmup=10", "optim.warmup=10"),
        Suggestion("pass dtype= to from_pretrained"),
    ]


def test_the_preexisting_tensor_is_read_from_the_first_evidence(grid: GridDirectory, tmp_path: Path) -> None:
    name = "parameter 1.weight"
    marked = [f"{name} was non-finite before it was read", f"{name}: 3 of 16 rows non-finite"]
    autopsy = schema_1(grid, tmp_path, evidence=marked)
    assert (autopsy.preexisting, autopsy.evidence) == (name, marked)
    assert schema_1(grid, tmp_path, evidence=[]).preexisting == ""


def test_schema_2_had_no_experiments(grid: GridDirectory, tmp_path: Path) -> None:
    autopsy = schema_1(grid, tmp_path)
    write_autopsy(tmp_path, autopsy)
    written = json.loads((tmp_path / AUTOPSY).read_text())
    for added in ("cures", "variants", "verdict", "alone"):
        del written[added]
    (tmp_path / AUTOPSY).write_text(json.dumps(written | {"schema": 2}))
    assert read_autopsy(tmp_path) == autopsy and autopsy.variants == []


def test_an_autopsy_of_another_shape_is_refused(grid: GridDirectory, tmp_path: Path) -> None:
    for damage in ({"suggestions": None}, {"suggestions": [1]}, {"evidence": None}, {"schema": 0}):
        with pytest.raises(
            RecordError, match=r"autopsy\.json cannot be read \(.*\): run the command that wrote it again"
        ):
            schema_1(grid, tmp_path, **damage)


SCRIPT_CONFIG = {
    "module": "__main__", "function": "make_trainer", "file": "train.py", "levels": {"lr": 1e-3}, "repeat": 0,
    "horizon": 16, "out": "outputs/diagnose", "threads": 1, "start_from": None, "resume": "unfinished",
    "dry_run": False,
}  # fmt: skip


CELL_CONFIG = {
    "seed": 0, "horizon": 16, "out": "outputs/grid",
    **{group: {"name": "none"} for group in (*GROUPS, "tracker")},
}  # fmt: skip


@pytest.mark.parametrize(("config", "kind"), [(SCRIPT_CONFIG, SCRIPT), (CELL_CONFIG, CELL)])
def test_a_released_request_gets_its_kind_from_its_keys(config: dict[str, Any], kind: str, tmp_path: Path) -> None:
    cell = tmp_path / "0123456789ab"
    cell.mkdir()
    request = {"cell_id": cell.name, "grid_id": "g", "title": "t", "overrides": [], "config": config, "schema": 1}
    (cell / "request.json").write_text(json.dumps(request))
    read = read_request(cell)
    live = {key: value for key, value in config.items() if key not in ("resume", "dry_run")}
    assert read is not None and (read.kind, read.schema, read.config) == (kind, 2, live)
    assert kind == CELL or requested_plan(read, cell).config.levels == config["levels"]


def test_every_mechanism_has_a_title(grid: GridDirectory) -> None:
    ids = {value for name, value in vars(mechanisms).items() if name.isupper() and isinstance(value, str)}
    assert ids == set(mechanisms.TITLES)
    assert {autopsy.mechanism for autopsy in grid.autopsies(grid.records()[0]).values()} <= ids
