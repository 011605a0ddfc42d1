"""Maps what a command raises to its exit code and to the sentence that the user reads."""

from __future__ import annotations

from collections.abc import Callable

from nangrid.commands.refusal import refusal_message
from nangrid.grid.exit_reason import ExitReason
from nangrid.grid.launch import CellsFailedError
from nangrid.records.safety.text import say

INTERRUPTED = 130


def exit_code(command: Callable[[], None]) -> int:
    """Run `command`: 0 if it ran (NaN is a result), 1 if a cell crashed or is unfinished, 2 bad input, 130 Ctrl-C.

    Bugs are raised, with their traceback.
    """
    try:
        command()
    except CellsFailedError as failure:
        say(failure, error=True)
        return 1
    except KeyboardInterrupt:
        say("Interrupted. Run the same command again to resume.", error=True)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and (reason := ExitReason.from_exception(error)).status is None:
            say(f"{reason.message}. Free some space, then run the same command again to resume.", error=True)
            return 1
        sentence = refusal_message(error)
        if sentence is None:
            raise
        say(sentence, error=True)
        return 2
    return 0
