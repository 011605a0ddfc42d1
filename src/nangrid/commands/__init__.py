"""The command line: `nangrid COMMAND ...` once installed, `python -m src.COMMAND ...` in a checkout."""

from __future__ import annotations

import difflib
import importlib
import sys

from nangrid.records.errors import MissingExtraError, requiring
from nangrid.records.safety.text import say

COMMANDS = {
    "run": "train one cell, or with -m a grid of cells",
    "diagnose": "search causes and cures between a failing and a training cell",
    "replay": "run a cell's failing step again, unchanged or under other levels",
    "report": "report which levels caused each failure and what cures it",
    "why": "say what went wrong, how sure that is, and what to change first",
    "check": "check a run before its first step",
    "status": "show the progress of a grid",
}
"""Each is a module of this package, whose `main` takes the arguments and returns the exit code."""

_EXTRAS = {"report": ("grid", "report")}
"""What a command needs beyond `grid`, which all of them need."""


def main() -> int:
    """Run the command that is named first and return its exit code; 2 if it is unknown or its extra is missing."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        say("usage: nangrid COMMAND ...\n")
        say("\n".join(f"  {command:8} {summary}" for command, summary in COMMANDS.items()))
        say("\nType nangrid COMMAND --help for the options of one command.")
        return 0
    if name not in COMMANDS:
        (guess,) = difflib.get_close_matches(name, COMMANDS, 1, cutoff=0.0)
        say(f"nangrid {name} is not a command: type nangrid {guess}, or nangrid --help.", error=True)
        return 2
    try:
        with requiring(f"nangrid {name}", *_EXTRAS.get(name, ("grid",))):
            code: int = importlib.import_module(f"nangrid.commands.{name}").main(arguments)
    except MissingExtraError as error:
        say(error, error=True)
        return 2
    return code
