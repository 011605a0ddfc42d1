"""What was asked of a cell? `request.json`, in its directory before it begins.

From it a waiting cell is known to whoever looks into the grid's directory, and can be run by any machine that
sees it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nangrid.cell.script.config import ScriptConfig, is_script
from nangrid.grid.plan import CellPlan, as_config
from nangrid.records.atomic import write_bytes
from nangrid.records.cell import REQUEST
from nangrid.records.codec import decode, encode
from nangrid.records.errors import RecordError

SCHEMA = 1


@dataclass(frozen=True)
class Request:
    """One cell's `request.json`."""

    cell_id: str
    grid_id: str
    title: str
    overrides: list[str]
    config: dict[str, Any]
    schema: int = SCHEMA

    @property
    def horizon(self) -> int:
        """Steps asked for."""
        return int(self.config["horizon"])

    def plan(self, cell: Path) -> CellPlan:
        """The cell in its directory, which may have been moved since."""
        asked = self.config | {"out": str(cell.absolute().parents[1])}
        config = ScriptConfig(**asked) if is_script(asked) else as_config(asked)
        return CellPlan(config, self.overrides, self.cell_id, self.title)


def write_request(plan: CellPlan, grid_id: str) -> None:
    """Make the cell's directory and write what is asked of it."""
    cell = plan.directory()
    cell.mkdir(parents=True, exist_ok=True)
    request = Request(plan.cell_id, grid_id, plan.title, plan.overrides, asdict(plan.config))
    write_bytes(cell / REQUEST, json.dumps(encode(request), indent=1).encode() + b"\n")


def read_request(cell: Path) -> Request | None:
    """What was last asked of the cell; None if nothing was, RecordError if it cannot be trusted."""
    path = cell / REQUEST
    try:
        request: Request = decode(Request, json.loads(path.read_bytes()))
        if request.schema != SCHEMA or request.cell_id != cell.name:
            raise ValueError(f"it is of schema {request.schema} and cell {request.cell_id}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is not the request of this cell in schema {SCHEMA}: {error}.") from error
    return request
