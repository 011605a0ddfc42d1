"""Maps what a command raises to its exit code and to the sentence that the user reads."""

from __future__ import annotations

import sys
from collections.abc import Callable

from nangrid.commands.refusal import refusal_message
from nangrid.grid.exit_reason import ExitReason
from nangrid.grid.launch import CellsFailedError

INTERRUPTED = 130


def exit_code(command: Callable[[], None]) -> int:
    """Run `command`: 0 if it ran (NaN is a result), 1 if a cell crashed or is unfinished, 2 bad input, 130 Ctrl-C.

    Bugs are raised, with their traceback.
    """
    try:
        command()
    except CellsFailedError as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again to resume.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and (reason := ExitReason.from_exception(error)).status is None:
            print(f"{reason.message}. Free some space, then run the same command again to resume.", file=sys.stderr)
            return 1
        sentence = refusal_message(error)
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)
        return 2
    return 0
