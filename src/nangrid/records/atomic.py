"""How is a file written so that a reader, or a kill, never meets half of it?"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step that survives a kill and a power cut."""
    temporary = _write_temporary(path, content)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def create_bytes(path: Path, content: bytes) -> bool:
    """Create `path` whole, once: False if it exists, even when another process made it a moment ago."""
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
    """Write `content` to disk under a name of its own beside `path`.

    Not `tempfile`: its files are readable by their owner only, and a grid is often shared.
    """
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
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
