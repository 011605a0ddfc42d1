"""Keeps the secrets of the environment, such as WANDB_API_KEY, out of everything that is written or shown."""

from __future__ import annotations

import os
import re
from typing import Any

from nangrid.records.errors import InputError

_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH", re.IGNORECASE)
_SHORTEST = 8
"""Characters of the shortest value that counts as a secret: `false` and `1` are none."""


def secrets() -> dict[str, str]:
    """Environment variables whose name says that they hold a secret; a path to an existing file is none."""
    # Not os.environ.items(), which raises KeyError if another thread removes a variable meanwhile.
    named = {name: os.environ.get(name, "") for name in os.environ if _NAME.search(name)}
    return {name: value for name, value in named.items() if len(value) >= _SHORTEST and not os.path.exists(value)}


def redacted(text: str) -> str:
    """The text, each secret in it replaced by the name of its variable."""
    for name, value in secrets().items():
        text = text.replace(value, f"<{name}>")
    return text


def refuse_secrets(value: Any, where: str = "") -> None:
    """InputError if a text in this config or these levels holds a secret of the environment."""
    if isinstance(value, dict):
        for key, item in value.items():
            refuse_secrets(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_secrets(item, where)
    elif isinstance(value, str) and (held := [name for name, secret in secrets().items() if secret in value]):
        raise InputError(f"{where} holds the value of {held[0]}, which records would show: give another value.")
