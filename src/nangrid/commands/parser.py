"""Sets up the argument parser of a command, under the name that the user typed."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from nangrid.records.safety.command import CHECKOUT, as_typed, typed


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
    return typed(CHECKOUT + command, *arguments)
