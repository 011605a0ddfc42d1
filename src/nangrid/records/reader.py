"""Reads a JSON record: checks its schema, upgrades an older one, and checks its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nangrid.records.codec import decode
from nangrid.records.errors import RecordError
from nangrid.records.safety.files import RECORD_BYTES, parse_json, read_bounded

T = TypeVar("T")
Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns the JSON of one schema into that of the next, its `schema` apart."""

RERUN = "run the command that wrote it again"


def read_json(path: Path, kind: type[T], schema: int, upgrades: Mapping[int, Upgrade] | None = None) -> T | None:
    """The record in `path`, an instance of the dataclass `kind`; None if there is no such file.

    `upgrades[n]` leads from schema n to n + 1, so that records of earlier releases still open. RecordError if the file
    cannot be read, is newer than `schema`, or does not have the declared shape.
    """
    content = read_record_bytes(path)
    if content is None:
        return None
    try:
        value = _upgraded(path, parse_json(content), schema, upgrades or {})
        record: T = decode(kind, value)
    except RecordError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise unreadable(path, str(error)) from error
    return record


def read_record_bytes(path: Path, limit: int = RECORD_BYTES) -> bytes | None:
    """The content of a record's file; None if there is none, RecordError for anything else that is no such file."""
    try:
        return read_bounded(path, limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, str(error.strerror), "make it readable") from error
    except ValueError as error:
        raise unreadable(path, str(error)) from error


def unreadable(path: Path, why: str, remedy: str = RERUN) -> RecordError:
    """The error of every record that cannot be trusted: which file, why, and what to do."""
    return RecordError(f"{path} cannot be read ({why}): {remedy}.")


def _upgraded(path: Path, value: Any, schema: int, upgrades: Mapping[int, Upgrade]) -> Any:
    # The schema is checked before any other key: a newer record should be called newer, not misshapen.
    written = value.get("schema") if isinstance(value, dict) else None
    if type(written) is int and written > schema:
        raise unreadable(path, f"its schema is {written}, newer than the {schema} of this nangrid", "upgrade nangrid")
    if type(written) is not int or written < 0 or not set(range(written, schema)) <= upgrades.keys():
        raise ValueError(f"its schema is {written!r}, not {schema}")
    for older in range(written, schema):
        value = upgrades[older](value)
    return value | {"schema": schema}
