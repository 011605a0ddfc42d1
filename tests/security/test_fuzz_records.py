"""Random and mutated records through every reader: an error that names the file, in bounded memory."""

import json
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutations import mutated
from sound_cell import write_cell

from nangrid.grid.progress import read_progress
from nangrid.grid.request import read_request, requested_config
from nangrid.records.autopsy import read_autopsy
from nangrid.records.cell import CellRecord
from nangrid.records.diagnosis import read_diagnoses
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory, read_verified
from nangrid.records.headroom import read_headroom, write_headroom
from nangrid.records.history import read_history
from nangrid.records.start_from import find_start

BYTES = 300_000
"""Bytes of damaged records per run; bench/fuzz_records.py reads millions."""
MEMORY = 600 * 2**20


def config(cell: Path) -> Any:
    request = read_request(cell)
    return request and requested_config(request, cell)


READERS: dict[str, Callable[[Path], Any]] = {
    "result.json": read_verified,
    "request.json": config,
    "autopsy.json": read_autopsy,
    "history.parquet": read_history,
    "headroom.parquet": read_headroom,
    "snapshot.json": lambda cell: find_start(str(cell)),
    "progress.json": read_progress,
    "diagnoses/a.json": lambda cell: read_diagnoses(cell),
    "grid.json": lambda cell: GridDirectory.at(cell),
}


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory, make_record: Callable[..., CellRecord]) -> Path:
    """A cell with every record; its folder serves as a grid's, too."""
    cell = write_cell(GridDirectory.open(tmp_path_factory.mktemp("grid")), 1, make_record)
    row = {"step": 0, "order": 0, "module": "m", "kind": "activation", "absmax": 1.0, "row": 0, "position": 0}
    write_headroom(cell, [row | {"token": 1, "text": "x", "step": step} for step in range(20)])
    (cell / "diagnoses").mkdir()
    (cell / "diagnoses" / "a.json").write_text('{"failing": "a", "reference": "b", "lines": ["x"], "schema": 2}')
    (cell / "grid.json").write_text('{"grid_id": "g", "created": "now", "schema": 1}')
    progress = {"pid": 1, "step": 1, "horizon": 2, "loss": 1.0, "phase": "train", "began": 1.0, "updated": 2.0}
    (cell / "progress.json").write_text(json.dumps(progress | {"peak_rss_bytes": 1}))
    return cell


@pytest.mark.parametrize("name", READERS)
def test_damage_ends_in_an_error_that_names_the_file(name: str, cell: Path) -> None:
    path, generator = cell / name, random.Random(name)
    sound, read = path.read_bytes(), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        while read < BYTES / len(READERS):
            content = mutated(sound, generator)
            read += len(content)
            path.write_bytes(content)
            try:
                READERS[name](cell)
            except InputError as error:
                assert str(cell) in str(error) and "\n" not in str(error), error
    finally:
        path.write_bytes(sound)
    READERS[name](cell)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
