"""Which commands are there? `nangrid COMMAND ...` installed, `python -m src.COMMAND` in a checkout."""

from __future__ import annotations

import difflib
import importlib
import sys

COMMANDS = {
    "run": "train one cell, or with -m a grid of cells",
    "diagnose": "search causes and cures between a failing and a training cell",
    "replay": "run a cell's failing step again, as it was or under other levels",
    "report": "say which levels brought each event about, and what cures it",
    "check": "look a run over before its first step",
    "status": "say how far a grid is, from its directory alone",
}
"""Each a module of this package with a `main` that takes the arguments and returns the exit code."""


def main() -> int:
    """Hand over to the command named first."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: nangrid COMMAND ...\n")
        print("\n".join(f"  {command:8} {does}" for command, does in COMMANDS.items()))
        print("\nnangrid COMMAND --help tells more.")
        return 0
    if name not in COMMANDS:
        (guess,) = difflib.get_close_matches(name, COMMANDS, 1, cutoff=0.0)
        print(f"nangrid {name} is not a command: type nangrid {guess}, or nangrid --help.", file=sys.stderr)
        return 2
    code: int = importlib.import_module(f"nangrid.commands.{name}").main(arguments)
    return code
