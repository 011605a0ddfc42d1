"""Makes the standard streams safe to write to: closed, full, or a terminal that knows only ASCII."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

_DESCRIPTORS = {"stdin": 0, "stdout": 1, "stderr": 2}


def open_closed_streams() -> None:
    """Open /dev/null in place of closed standard streams, and write what a terminal cannot show as escapes.

    Otherwise the next file that is opened takes the descriptor of a closed stream, and gets what is printed.
    """
    for name, descriptor in _DESCRIPTORS.items():
        if getattr(sys, name) is None:
            while (opened := os.open(os.devnull, os.O_RDWR)) < descriptor:
                pass  # a lower one is closed, too
            if opened > descriptor:
                os.dup2(opened, descriptor)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        # In the C locale Python's own choice is surrogateescape, which fails on what ASCII lacks as well.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def words_aside(aside: bool) -> Iterator[None]:
    """Within the block what is printed goes to standard error if `aside`, because standard output is for JSON."""
    with contextlib.redirect_stdout(sys.stderr) if aside else contextlib.nullcontext():
        yield


def mute_output() -> None:
    """Send the rest of standard output to /dev/null, because nobody can read it."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, sys.stdout.fileno())
    os.close(silent)
