"""Prints what a command says with `--json`: one JSON value on standard output, and nothing else."""

from __future__ import annotations

import json
from typing import Any

from nangrid.records.codec import encode
from nangrid.records.safety.secret import redacted
from nangrid.records.safety.text import say


def say_json(value: Any) -> None:
    """Print a dataclass as JSON. Everything but ASCII is escaped, so no text acts on a terminal."""
    say(json.dumps(_without_secrets(encode(value)), indent=1))


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {redacted(key): _without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return redacted(value) if isinstance(value, str) else value
