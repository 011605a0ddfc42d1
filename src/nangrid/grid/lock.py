"""Is a cell being run by someone right now?

The cell's own process holds an flock on <cell>/lock for its life. The kernel drops it at death, however the
process died, so a lock is never stale; and the launcher may die before the cell without freeing it.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from nangrid.records.cell import REQUEST, RESULT

LOCK = "lock"
ATTEMPTS = "attempts"


def acquire(cell: Path, timeout_s: float = 0.0) -> int | None:
    """Lock the cell for this process: an open descriptor, to be kept; None while another process has it."""
    cell.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(cell / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.05)
        else:
            return descriptor


def release(lock: int) -> None:
    """Give the cell up."""
    os.close(lock)


def is_held(cell: Path) -> bool:
    """Whether some process runs the cell. Writes nothing: the directory may be somebody else's."""
    try:
        descriptor = os.open(cell / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


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
