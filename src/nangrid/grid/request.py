"""Defines `request.json`, written into a cell's directory before the cell starts.

It makes waiting cells visible in the grid's directory, and lets any machine that sees the directory run them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf.errors import OmegaConfBaseException

from nangrid.cell.config import Config
from nangrid.cell.levels import as_config, check_levels
from nangrid.cell.script.config import ScriptConfig
from nangrid.records.atomic import write_bytes
from nangrid.records.cell import MOST_STEPS, REQUEST
from nangrid.records.codec import decode, encode
from nangrid.records.errors import InputError
from nangrid.records.reader import read_json, unreadable

if TYPE_CHECKING:
    from nangrid.grid.plan import CellPlan

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

    def __post_init__(self) -> None:
        """Check the config, without what takes long, because the progress of a grid reads every request."""
        if self.kind == SCRIPT:
            decode(ScriptConfig, self.config, "config")
        elif self.kind == CELL:
            check_levels(self.config)
        else:
            raise ValueError(f"kind is {self.kind!r:.60}, not {CELL} or {SCRIPT}")
        if not 1 <= self.config["horizon"] <= MOST_STEPS:
            raise ValueError(f"config.horizon is {self.config['horizon']}, not a number of steps")

    @property
    def model(self) -> str:
        """The requested level of the model; empty for a script, which builds its own."""
        return "" if self.kind == SCRIPT else str(self.config["model"]["name"])

    @property
    def horizon(self) -> int:
        """The requested number of steps."""
        return int(self.config["horizon"])


def requested_config(request: Request, cell: Path) -> Config:
    """The config of a request in the directory `cell`, every level checked; RecordError if a level does not exist."""
    try:
        return as_config(request.config | {"out": str(cell.absolute().parents[1])})
    except (InputError, OmegaConfBaseException) as error:
        raise unreadable(cell / REQUEST, " ".join(str(error).split())) from error


def write_request(plan: CellPlan, grid_id: str) -> None:
    """Create the cell's directory and write its request."""
    cell = plan.directory()
    if cell.is_symlink():
        raise InputError(f"{cell} is a link: remove it, or give another out=.")
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
