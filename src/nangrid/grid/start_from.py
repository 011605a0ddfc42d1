"""Finds the levels of the run that `start_from` resumes, and refuses changes that a resumed run cannot take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nangrid.cell.config import Config, flattened, is_how_not_which
from nangrid.cell.identity import level_fields
from nangrid.grid.request import SCRIPT, read_request, requested_config
from nangrid.records.cell import START_FROM
from nangrid.records.errors import InputError
from nangrid.records.start_from import Start, find_start

_WHY = {
    "seed": "its random states and data order come from that seed",
    "processes": "each process has read its own part of the data",
    "model": "the weights trained so far belong to that model",
    "vocab": "its embedding rows and samples were made with that vocabulary",
    "targets": "the weights trained so far have that shape",
    "data": "its position in the data is a position among those samples",
}


def levels_of(start: Start) -> dict[str, Any] | None:
    """The flattened scientific config of the cell that `start` belongs to; None if it belongs to no cell."""
    if start.cell is None:
        return None
    request = read_request(start.cell)
    if request is None or request.kind == SCRIPT:
        raise InputError(f"{start.cell} is no cell whose levels a run could take over: give another {START_FROM}=.")
    return flattened(asdict(requested_config(request, start.cell)))


def check_origin(config: Config) -> None:
    """Raise InputError if the config changes a level that cannot change in the middle of a run."""
    before = None if config.start_from is None else levels_of(find_start(config.start_from))
    if before is None:
        return
    for key, value in flattened(asdict(config)).items():
        group = key.split(".")[0]
        # The file may have moved; its content is compared batch by batch when the run resumes.
        if value == before.get(key) or is_how_not_which(key) or key == "data.path":
            continue
        raise InputError(
            f"{key}={value} cannot change in the middle of a run ({_WHY[group]}): "
            f"leave it at {key}={before.get(key)}, or train from the first step without {START_FROM}."
        )


def inherited(overrides: Sequence[str]) -> dict[str, Any]:
    """Levels of the cell that `start_from` names, without those that the overrides replace; {} without such a cell."""
    path = next((o.partition("=")[2] for o in overrides if o.partition("=")[0].lstrip("+") == START_FROM), "null")
    before = None if path == "null" else levels_of(find_start(path.strip("'\"")))
    if before is None:
        return {}
    given = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    return {key: value for key, value in before.items() if key not in given and not _set_by_group(key, before, given)}


def _set_by_group(key: str, before: Mapping[str, Any], given: Mapping[str, str]) -> bool:
    """Whether the group of this field is overridden, and its new level or its old one sets the field."""
    group, _, field = key.partition(".")
    return group in given and any(field in level_fields(group, name) for name in (before[group], given[group]))
