"""What is the exit code of a command, and what does a person read when it is not 0?"""

from __future__ import annotations

import sys
from collections.abc import Callable

from nangrid.commands.refusal import explain
from nangrid.grid.ending import of_error
from nangrid.grid.launch import CellsFailedError

INTERRUPTED = 130


def exit_code(command: Callable[[], None]) -> int:
    """0 it ran (NaN is a result), 1 a cell crashed or is unfinished, 2 bad input, 130 Ctrl-C.

    A mistake of the program's own is raised.
    """
    try:
        command()
    except CellsFailedError as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on where this one stopped.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and (ending := of_error(error)).status is None:
            print(f"{ending.message}: make room, and the same command goes on where this one stopped.", file=sys.stderr)
            return 1
        sentence = explain(error)
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)
        return 2
    return 0
