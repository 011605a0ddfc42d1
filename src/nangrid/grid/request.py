"""Defines `request.json`, written into a cell's directory before the cell starts.

It makes waiting cells visible in the grid's directory, and lets any machine that sees the directory run them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nangrid.cell.script.config import ScriptConfig
from nangrid.grid.plan import CellPlan, as_config
from nangrid.records.atomic import write_bytes
from nangrid.records.cell import REQUEST
from nangrid.records.codec import encode
from nangrid.records.reader import read_json, unreadable

SCHEMA = 2
CELL, SCRIPT = "cell", "script"
_SCRIPT_KEYS_OF_SCHEMA_1 = frozenset(
    ("module", "function", "file", "levels", "repeat", "horizon", "out", "threads", "start_from", "resume", "dry_run")
)


@dataclass(frozen=True)
class Request:
    """One cell's `request.json`."""

    kind: str
    """`cell`: `config` is a Config. `script`: it is a ScriptConfig, which names a function in the user's script."""
    cell_id: str
    grid_id: str
    title: str
    overrides: list[str]
    config: dict[str, Any]
    schema: int = SCHEMA

    @property
    def horizon(self) -> int:
        """The requested number of steps."""
        return int(self.config["horizon"])

    def plan(self, cell: Path) -> CellPlan:
        """The plan of the cell in the directory `cell`, which may have been moved since the request was written."""
        fields = self.config | {"out": str(cell.absolute().parents[1])}
        config = ScriptConfig(**fields) if self.kind == SCRIPT else as_config(fields)
        return CellPlan(config, self.overrides, self.cell_id, self.title)


def write_request(plan: CellPlan, grid_id: str) -> None:
    """Create the cell's directory and write its request."""
    cell = plan.directory()
    cell.mkdir(parents=True, exist_ok=True)
    kind = SCRIPT if isinstance(plan.config, ScriptConfig) else CELL
    request = Request(kind, plan.cell_id, grid_id, plan.title, plan.overrides, asdict(plan.config))
    write_bytes(cell / REQUEST, json.dumps(encode(request), indent=1).encode() + b"\n")


def read_request(cell: Path) -> Request | None:
    """The latest request for the cell; None if there is none, RecordError if it cannot be read or is another cell's."""
    path = cell / REQUEST
    request = read_json(path, Request, SCHEMA, {1: _from_schema_1})
    if request is not None and request.cell_id != cell.name:
        raise unreadable(path, f"it is the request of another cell, {request.cell_id}")
    return request


def _from_schema_1(request: dict[str, Any]) -> dict[str, Any]:
    config = request["config"]
    if config.keys() != _SCRIPT_KEYS_OF_SCHEMA_1:
        return request | {"kind": CELL}
    fields = {key: value for key, value in config.items() if key not in ("resume", "dry_run")}
    return request | {"kind": SCRIPT, "config": fields}
