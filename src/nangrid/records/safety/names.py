"""Checks the names, levels and overrides that records hold, which may be a stranger's."""

from __future__ import annotations

import re
from typing import Any

GROUPS = ("model", "quant", "dtype", "vocab", "init", "targets", "checkpointing", "optim", "upcast", "data")
"""Config groups that decide a cell's numbers."""
_TOP = ("seed", "horizon", "threads", "processes", "headroom", "keep_every", "start_from", "out", "resume", "dry_run")
_TYPED = (*_TOP, *GROUPS)
"""Keys that a command offered for copying may set, besides a named experiment and the tracker's level."""
_NAME = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_KEY = re.compile(r"[a-z_]+(\.[a-z_]+)?")
_UNTYPED = re.compile(r"\$\{|[\x00-\x1f\x7f-\x9f]")


def is_name(text: object) -> bool:
    """Whether `text` is the name of a level, a cell or an experiment: letters, digits, `_`, `-`, and dots inside."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None and ".." not in text


def is_level(value: object) -> bool:
    """Whether a record may hold this as a level: a scalar, or a list of them."""
    return all(isinstance(item, str | int | float | None) for item in (value if isinstance(value, list) else [value]))


def is_override(text: str) -> bool:
    """Whether `text` sets a known key to a plain level: no key of Hydra's, no interpolation, no path as a level."""
    key, equals, value = text.partition("=")
    if not equals or _UNTYPED.search(value):
        return False
    bare = value.strip("'\"")
    if key in ("+experiment", "tracker"):
        return is_name(bare)
    group, _, field = key.partition(".")
    return bool(_KEY.fullmatch(key)) and group in _TYPED and bool(field or group not in GROUPS or is_name(bare))


def refuse_interpolation(value: Any, where: str = "config") -> None:
    """ValueError if OmegaConf would interpolate a text in the value: `${oc.env:HOME}` reads the environment."""
    if isinstance(value, dict):
        for key, item in value.items():
            refuse_interpolation(item, f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            refuse_interpolation(item, where)
    elif isinstance(value, str) and "${" in value:
        raise ValueError(f"{where} is {value!r:.60}, which is no plain level")
