"""Writes files atomically: neither a reader nor a kill ever leaves or sees half of one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file `path` in one step that survives a kill and a power cut."""
    temporary = _write_temporary(path, content)
    try:
        if path.is_dir() and not path.is_symlink():
            set_damaged_aside(path)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def create_bytes(path: Path, content: bytes) -> bool:
    """Create the file `path` in one step; False if it exists, even if another process has just made it."""
    temporary = _write_temporary(path, content)
    try:
        os.link(temporary, path)  # unlike os.replace, fails when the name is taken
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    sync(path.parent)
    return True


def _write_temporary(path: Path, content: bytes) -> Path:
    """Write `content` to a new hidden file in the directory of `path` and return its path."""
    # Not tempfile: its files are readable by their owner only, and a grid is often shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a directory, are on disk.

    A power cut loses a rename whose directory was not synced, although the file's content is on disk.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_damaged_aside(path: Path) -> Path:
    """Rename a damaged file or directory to the next free `NAME.damaged-N` and return that path."""
    number = len(list(path.parent.glob(f"{path.name}.damaged-*")))
    return path.rename(path.with_name(f"{path.name}.damaged-{number}"))
