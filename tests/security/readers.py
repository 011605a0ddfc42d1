"""Every reader of a record, and a cell that has all of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sound_cell import write_cell

from nangrid.grid.progress import read_progress
from nangrid.grid.request import read_request, requested_config
from nangrid.records.autopsy import read_autopsy
from nangrid.records.diagnosis import read_diagnoses
from nangrid.records.grid import GridDirectory, read_verified
from nangrid.records.headroom import read_headroom, write_headroom
from nangrid.records.history import read_history
from nangrid.records.start_from import find_start


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


def every_record(folder: Path) -> Path:
    """A cell with every record; its folder serves as a grid's, too."""
    cell = write_cell(GridDirectory.open(folder), 1)
    row = {"step": 0, "order": 0, "module": "m", "kind": "activation", "absmax": 1.0, "row": 0, "position": 0}
    write_headroom(cell, [row | {"token": 1, "text": "x", "step": step} for step in range(20)])
    (cell / "diagnoses").mkdir()
    (cell / "diagnoses" / "a.json").write_text('{"failing": "a", "reference": "b", "lines": ["x"], "schema": 2}')
    (cell / "grid.json").write_text('{"grid_id": "g", "created": "now", "schema": 1}')
    progress = {"pid": 1, "step": 1, "horizon": 2, "loss": 1.0, "phase": "train", "began": 1.0, "updated": 2.0}
    (cell / "progress.json").write_text(json.dumps(progress | {"peak_rss_bytes": 1}))
    return cell
