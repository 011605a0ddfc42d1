"""Runs a cell with another Python (`python=`), which has its own packages but imports this very nangrid.

The worker that has locked the cell starts this file, by its path, with the other Python, and passes on its answer.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nangrid.grid.worker import Reply

GRACE_S = 3.0
"""Seconds between SIGTERM and SIGKILL; the launcher waits a little longer for the worker."""


def run_with(python: str, cell: Path, module: str) -> Reply:
    """Run the requested cell by `module`.run_cell with that Python. A signal that ends it ends this process, too."""
    from nangrid.grid.worker import Reply, ReplyKind

    receiver, sender = os.pipe()
    with os.fdopen(receiver) as answer:
        command = [python, "-P", __file__, str(cell), module, str(sender), str(os.getpid())]
        with subprocess.Popen(command, pass_fds=(sender,)) as child:
            os.close(sender)
            try:
                code = child.wait()
            finally:
                _end(child)
        os.set_blocking(receiver, False)  # a process that the cell left behind may hold the other end
        with suppress(OSError, ValueError, TypeError):
            reply = json.loads(answer.read() or "null")
            if reply is not None:
                return Reply(ReplyKind(reply["kind"]), reply["message"])
    if code < 0:
        _die_of(-code)
    raise RuntimeError(f"python={python} ended with exit code {code}")


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
    if child.poll() is None:
        child.kill()


def _die_of(number: int) -> None:
    """End this process as the child ended, so that the launcher tells the reason as for any other cell."""
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _import_nangrid() -> None:
    """Import the package that this file belongs to, and nothing else from where it is installed."""
    package = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        package.name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[package.name] = module
    spec.loader.exec_module(module)


def main(cell: str, module: str, sender: int, parent: int) -> None:
    """Run the cell in this process, and send the reply."""
    python, reply = sys.executable, {"kind": "done", "message": ""}
    try:
        _import_nangrid()
        from nangrid.grid.worker import run_for

        answer = run_for(parent, cell, module)
        reply = {"kind": str(answer.kind), "message": answer.message}
    except ImportError as error:
        missing = f"python={python} cannot run the cell ({error}): install nangrid's extra grid in it"
        reply = {"kind": "refused", "message": f"{missing}."}
    with os.fdopen(sender, "w") as pipe:
        json.dump(reply, pipe)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
