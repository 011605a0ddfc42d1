"""Writes commands that a reader may copy, quoted for the shell."""

from __future__ import annotations

import shlex


def typed(command: str, *arguments: object) -> str:
    """`command`, a fixed text, and its arguments, which may come from a record, each quoted as one word."""
    return " ".join([command, *(shlex.quote(str(argument)) for argument in arguments)])
