"""Reads a JSON record: checks its schema, upgrades an older one, and checks its shape."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nangrid.records.codec import decode
from nangrid.records.errors import RecordError

T = TypeVar("T")
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns the JSON of one schema into that of the next, its `schema` apart."""

RERUN = "run the command that wrote it again"


def read_json(path: Path, kind: type[T], schema: int, upgrades: Mapping[int, Upgrade] | None = None) -> T | None:
    """The record in `path`, an instance of the dataclass `kind`; None if there is no such file.

    `upgrades[n]` leads from schema n to n + 1, so that records of earlier releases still open. RecordError if the file
    cannot be read, is newer than `schema`, or does not have the declared shape.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, str(error.strerror), "make it readable") from error
    try:
        value = _upgraded(path, json.loads(content), schema, upgrades or {})
        record: T = decode(kind, value)
    except RecordError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(path, str(error)) from error
    return record


def unreadable(path: Path, why: str, remedy: str = RERUN) -> RecordError:
    """The error of every record that cannot be trusted: which file, why, and what to do."""
    return RecordError(f"{path} cannot be read ({why}): {remedy}.")


def _upgraded(path: Path, value: Any, schema: int, upgrades: Mapping[int, Upgrade]) -> Any:
    # The schema is checked before any other key: a newer record should be called newer, not misshapen.
    written = value.get("schema") if isinstance(value, dict) else None
    if isinstance(written, int) and written > schema:
        raise unreadable(path, f"its schema is {written}, newer than the {schema} of this nangrid", "upgrade nangrid")
    if not isinstance(written, int) or not set(range(written, schema)) <= upgrades.keys():
        raise ValueError(f"its schema is {written!r}, not {schema}")
    for older in range(written, schema):
        value = upgrades[older](value)
    return value | {"schema": schema}
