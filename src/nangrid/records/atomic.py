"""Writes files atomically: neither a reader nor a kill ever leaves or sees half of one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file `path` in one step that survives a kill and a power cut."""
    temporary = _write_temporary(path, content)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def create_bytes(path: Path, content: bytes) -> bool:
    """Create the file `path` in one step; False if it exists, even if another process has just made it."""
    temporary = _write_temporary(path, content)
    try:
        os.link(temporary, path)  # unlike os.replace, fails when the name is taken
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    _sync_directory(path.parent)
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


def _sync_directory(directory: Path) -> None:
    # Without this a power cut can lose the rename, although the file's content is on disk.
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
