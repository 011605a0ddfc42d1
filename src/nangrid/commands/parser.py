"""Sets up the argument parser of a command, under the name that the user typed."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from nangrid.records.safety.command import typed

CHECKOUT, INSTALLED = "python -m src.", "nangrid "


def make_parser(command: str, description: str, epilog: str = "") -> ArgumentParser:
    """Parser of `command`. The epilog's examples are written as in a checkout: `python -m src.report GRID_DIR`."""
    return ArgumentParser(
        prog=command_line(command),
        description=description,
        epilog=as_typed(epilog),
        allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
    )


def command_line(command: str, *arguments: object) -> str:
    """`nangrid run` where the installed entry point was called, else `python -m src.run`; arguments are quoted."""
    return typed(as_typed(CHECKOUT + command), *arguments)


def as_typed(text: str) -> str:
    """`text`, its commands turned into the installed ones where the installed entry point was called."""
    installed = Path(sys.argv[0]).stem == INSTALLED.strip()
    return text.replace(CHECKOUT, INSTALLED) if installed else text
