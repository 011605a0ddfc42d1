"""Checks configs: those that Hydra composed, and those read from disk, which may be a stranger's."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from typing import Any, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf

from nangrid.cell.config import Config
from nangrid.records.codec import decode
from nangrid.records.errors import InputError
from nangrid.records.safety.names import GROUPS, is_name, refuse_interpolation

_NAMED = (*GROUPS, "tracker")


def check_levels(config: Mapping[str, Any]) -> None:
    """ValueError unless the config holds known keys alone, values of their types, and names of levels as levels.

    Keys may be missing, because a later release added them, except those that every command needs.
    """
    refuse_interpolation(config)
    _check(Config, config, "config")
    for key in ("seed", "horizon", *_NAMED):
        if key not in config:
            raise ValueError(f"config lacks {key}")
    for group in _NAMED:
        if not is_name(config[group].get("name")):
            raise ValueError(f"config.{group}.name is {config[group].get('name')!r:.60}, which is no level")


def _check(kind: type, values: object, where: str) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r:.60}, not an object")
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"{where} has the unknown {key:.60}")
        if dataclasses.is_dataclass(hints[key]):
            _check(hints[key], value, f"{where}.{key}")
        elif value == MISSING:
            raise ValueError(f"{where} lacks {key}")
        else:
            decode(hints[key], value, f"{where}.{key}")


def as_config(composed: dict[str, Any]) -> Config:
    """The composed config as checked objects; InputError for a key that no cell reads, or a value still to be read."""
    try:
        refuse_interpolation(composed)
    except ValueError as error:
        raise InputError(f"{error}: give the value itself.") from error
    _refuse_unknown(composed, Config)
    config = OmegaConf.to_object(OmegaConf.merge(_schema(), composed))
    assert isinstance(config, Config)
    return config


@functools.cache
def _schema() -> DictConfig:
    """Config as OmegaConf types it; made once, because that takes as long as checking a config against it."""
    schema: DictConfig = OmegaConf.structured(Config)
    return schema


def _refuse_unknown(composed: dict[str, Any], schema: type, prefix: str = "") -> None:
    # `+optim.betas=1` composes, because + adds keys, and would then be ignored silently.
    kinds = get_type_hints(schema)
    for key, value in composed.items():
        if key not in kinds:
            near = difflib.get_close_matches(key, [*kinds, *([] if prefix else ["experiment"])], 1)
            instead = f"did you mean {prefix}{near[0]}?" if near else "leave it out."
            raise InputError(f"{prefix}{key} is not a key that a cell reads: {instead}")
        if isinstance(value, dict) and dataclasses.is_dataclass(kinds[key]):
            _refuse_unknown(value, kinds[key], f"{prefix}{key}.")
