"""Locks a cell's directory for the one process that runs it, and tells whether some process does.

The cell's own process holds an flock on <cell>/lock as long as it lives. The kernel releases it at the process's death,
however it died, so a lock is never stale; and a launcher that dies before its cell does not release it.

filelock, which locks the model cache, is not used here: it creates the file in order to ask whether it is locked, and
`status` must be able to ask in a directory that belongs to somebody else, without writing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

from nangrid.records.atomic import set_damaged_aside
from nangrid.records.cell import REQUEST, RESULT
from nangrid.records.errors import InputError
from nangrid.records.safety.files import is_own_folder

LOCK = "lock"
ATTEMPTS = "attempts"


def acquire(cell: Path, timeout_s: float = 0.0) -> int | None:
    """Lock the cell for this process; waits up to `timeout_s` seconds.

    Returns a descriptor that holds the lock until it is closed, or None if another process holds it.
    """
    cell.mkdir(parents=True, exist_ok=True)
    if not is_own_folder(cell):
        raise InputError(f"{cell} is a link to another directory: remove it, or give another out=.")
    try:
        descriptor = os.open(cell / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        raise InputError(f"{cell / LOCK} is no file ({error.strerror}): remove it, or give another out=.") from error
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
    """Release the cell."""
    os.close(lock)


def is_held(cell: Path) -> bool:
    """Whether some process runs the cell. Writes nothing: the directory may be read-only."""
    try:
        descriptor = os.open(cell / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # no cell has begun here, or this user cannot tell
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def set_aside(cell: Path) -> None:
    """Move what the last attempt left into attempts/N. Only the holder of the lock may call it."""
    left = [path for path in cell.iterdir() if path.name not in (LOCK, REQUEST, ATTEMPTS)]
    if not left:
        return
    attempts = cell / ATTEMPTS
    if attempts.is_symlink():  # files would move to wherever it leads
        set_damaged_aside(attempts)
    attempts.mkdir(exist_ok=True)
    folder = attempts / str(len(list(attempts.iterdir())))
    folder.mkdir()
    # The record goes first: if this process is killed between two renames, the cell must count as unfinished.
    for path in sorted(left, key=lambda path: path.name != RESULT):
        path.rename(folder / path.name)
