"""What becomes of an earlier attempt when a cell is run again? It moves to <cell>/attempts/<n>, whole."""

from __future__ import annotations

from pathlib import Path

from nangrid.grid.lock import LOCK
from nangrid.records.cell import REQUEST, RESULT

ATTEMPTS = "attempts"


def set_aside(cell: Path) -> None:
    """Empty the cell's directory for the next attempt. For the holder of its lock."""
    left = [path for path in cell.iterdir() if path.name not in (LOCK, REQUEST, ATTEMPTS)]
    if not left:
        return
    attempts = cell / ATTEMPTS
    attempts.mkdir(exist_ok=True)
    folder = attempts / str(len(list(attempts.iterdir())))
    folder.mkdir()
    # the record first: killed between two renames, the cell must be unfinished
    for path in sorted(left, key=lambda path: path.name != RESULT):
        path.rename(folder / path.name)
