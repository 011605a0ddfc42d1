"""Reads files of a directory that may be a stranger's: regular files inside it, never more than a limit."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

RECORD_BYTES = 8 * 2**20
"""Size of the largest JSON record; real ones have a few hundred kilobytes at most."""
DEPTH = 64
"""Levels of nesting in a JSON record; real ones have about ten."""
_LARGEST = 2**63 - 1


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; ValueError for anything else, and for a link that leaves the file's folder.

    Opening a FIFO waits for a writer and reading a device may never end, so neither is begun.
    """
    if path.is_symlink() and not _is_within(path, path.parent):
        raise ValueError("it is a link to another directory")
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is not a regular file")
    return file


def read_bounded(path: Path, limit: int = RECORD_BYTES) -> bytes:
    """The content of a regular file; ValueError if it has more than `limit` bytes."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit} bytes")
    return content


def inside(folder: Path, relative: str) -> Path:
    """`folder / relative`; ValueError if that leaves the folder, by its name or through a link."""
    path = folder / relative
    if Path(relative).is_absolute() or ".." in Path(relative).parts or not _is_within(path, folder):
        raise ValueError(f"{relative!r:.80} is not a path inside {folder}")
    return path


def is_own_folder(path: Path) -> bool:
    """Whether `path` is a directory whose content lies in its parent, not a link to somewhere else."""
    return path.is_dir() and _is_within(path, path.parent)


def parse_json(content: bytes, *, constants: bool = False) -> Any:
    """The JSON value; ValueError for damage, deep nesting, and numbers or texts that no record holds.

    `constants`: accept NaN and Infinity.
    """
    try:
        value = json.loads(content, parse_constant=None if constants else _refuse_constant)
    except RecursionError as error:
        raise ValueError(_too_deep()) from error
    level, depth = [value], 0
    while level:
        if depth > DEPTH:
            raise ValueError(_too_deep())
        level, depth = [item for each in level for item in _items(each, constants)], depth + 1
    return value


def _items(value: Any, constants: bool) -> list[Any]:
    """The values inside of this one, which is checked itself."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list):
        return value
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("it holds half a surrogate pair")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError("it holds a whole number of more than 64 bits")
    if isinstance(value, float) and math.isinf(value) and not constants:
        raise ValueError("it holds a number that is too large")
    return []


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is not JSON")


def _too_deep() -> str:
    return f"it is nested more than {DEPTH} levels deep"


def _is_within(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
