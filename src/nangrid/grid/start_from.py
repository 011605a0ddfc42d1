"""Whose run does a cell go on with, and what must stay as it was there?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nangrid.cell.config import Config, flattened, is_how_not_which
from nangrid.cell.identity import level_fields
from nangrid.records.cell import REQUEST, START_FROM
from nangrid.records.errors import InputError
from nangrid.records.start_from import Start, find_start

_WHY = {
    "seed": "its random states and the order of its data are the run's own",
    "model": "what it trained so far belongs to that model",
    "vocab": "its rows and its samples were made with that vocabulary",
    "targets": "what it trained so far has that shape",
    "data": "its place in the data is a place among those samples",
}


def levels_of(start: Start) -> dict[str, Any] | None:
    """The scientific config of the cell whose run it is, key by key; None if it is no cell's."""
    if start.cell is None:
        return None
    path = start.cell / REQUEST
    try:
        return flattened(json.loads(path.read_bytes())["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error!r}): give another {START_FROM}=.") from error


def check_origin(config: Config) -> None:
    """InputError if the config asks for what cannot change in the middle of a run."""
    before = None if config.start_from is None else levels_of(find_start(config.start_from))
    if before is None:
        return
    for key, value in flattened(asdict(config)).items():
        group = key.split(".")[0]
        # a file's path is not what it holds: that is compared batch by batch
        if value == before.get(key) or is_how_not_which(key) or key == "data.path":
            continue
        raise InputError(
            f"{key}={value} cannot change in the middle of a run ({_WHY[group]}): "
            f"leave it at {key}={before.get(key)}, or train from the first step without {START_FROM}."
        )


def inherited(overrides: Sequence[str]) -> dict[str, Any]:
    """The levels of the cell that `start_from` names, but for what the overrides put in their stead."""
    path = next((o.partition("=")[2] for o in overrides if o.partition("=")[0].lstrip("+") == START_FROM), "null")
    before = None if path == "null" else levels_of(find_start(path.strip("'\"")))
    if before is None:
        return {}
    given = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    return {key: value for key, value in before.items() if key not in given and not _fixed(key, before, given)}


def _fixed(key: str, before: Mapping[str, Any], given: Mapping[str, str]) -> bool:
    """Whether a group's level is given and it, or the one before it, is what decides this field."""
    group, _, field = key.partition(".")
    return group in given and any(field in level_fields(group, name) for name in (before[group], given[group]))
