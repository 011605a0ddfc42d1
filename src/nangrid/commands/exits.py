"""Maps what a command raises to its exit code and to the sentence that the user reads."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable

from nangrid.commands.streams import mute_output, open_closed_streams
from nangrid.grid.exit_reason import OUT_OF_MEMORY, ExitReason
from nangrid.grid.launch import CellsFailedError
from nangrid.records.safety.text import say

INTERRUPTED = 130
_PATH_ERRNOS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EACCES)
"""Faults of a path that the user gave."""


def exit_code(command: Callable[[], None]) -> int:
    """Run `command`: 0 if it ran (NaN is a result), 1 if a cell crashed or is unfinished, 2 bad input, 130 Ctrl-C.

    Bugs are raised, with their traceback.
    """
    open_closed_streams()
    try:
        return _told(*_outcome(command))
    except KeyboardInterrupt:  # a second Ctrl-C, while the first one's sentence is written
        return INTERRUPTED


def _told(code: int, message: str) -> int:
    """Print the message; the exit code, or 1 if what was printed before cannot be written."""
    with contextlib.suppress(OSError):
        if message:
            say(message, error=True)
    try:
        sys.stdout.flush()
    except OSError:  # `| head` has read enough, or the file that output goes to is on a full disk
        mute_output()
        return code or 1
    return code


def _outcome(command: Callable[[], None]) -> tuple[int, str]:
    try:
        command()
    except CellsFailedError as failure:
        return 1, str(failure)
    except KeyboardInterrupt:
        return INTERRUPTED, "Interrupted. Run the same command again to resume."
    except BrokenPipeError:
        return 1, ""
    except Exception as error:
        from nangrid.commands.refusal import refusal_message  # Hydra takes a fifth of a second

        if sentence := refusal_message(error):
            return 2, sentence
        if isinstance(error, OSError) and error.errno in _PATH_ERRNOS:
            name = str(error.filename)[:80]
            return 2, f"{name} cannot be read or written ({os.strerror(error.errno)}): give another path."
        reason = ExitReason.from_exception(error)
        if reason.status is None:
            space = "Free some space, then run" if getattr(error, "errno", None) == errno.ENOSPC else "Run"
            return 1, f"{reason.message[:1].upper()}{reason.message[1:]}. {space} the same command again to resume."
        if reason.type == OUT_OF_MEMORY:
            return 1, f"Memory ran out ({reason.message}). Free some, then run the same command again to resume."
        raise
    return 0, ""
