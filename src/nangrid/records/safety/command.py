"""Writes commands that a reader may copy, under the name that the user typed, and quoted for the shell."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

CHECKOUT, INSTALLED = "python -m src.", "nangrid "


def typed(command: str, *arguments: object) -> str:
    """`command`, a fixed text, and its arguments, which may come from a record, each quoted as one word."""
    return " ".join([as_typed(command), *(shlex.quote(str(argument)) for argument in arguments)])


def as_typed(text: str) -> str:
    """`text`, its commands turned into the installed ones where the installed entry point was called."""
    installed = Path(sys.argv[0]).stem == INSTALLED.strip()
    return text.replace(CHECKOUT, INSTALLED) if installed else text
