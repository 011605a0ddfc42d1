"""Runs a function on each case in a process of its own, forked from one that has imported everything."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from case import Case

TIMEOUT_S = 180.0


def run(cases: Sequence[Case], work: Callable[[Case, Path], Any], jobs: int) -> Iterator[tuple[Case, Any]]:
    """The case and what `work` returned, in the order in which they end; None if the process crashed or hung."""
    import torch._dynamo  # noqa: F401  imported by the first optimizer step: once here instead of once per case

    waiting = list(reversed(cases))
    running: dict[int, tuple[Case, tempfile.TemporaryDirectory[str], float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            case, folder = waiting.pop(), tempfile.TemporaryDirectory()
            running[_fork(case, work, Path(folder.name))] = (case, folder, time.monotonic())
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            case, folder, _ = running.pop(pid)
            found = Path(folder.name) / "found.json"
            yield case, json.loads(found.read_text()) if found.exists() else None
            folder.cleanup()
        elif pid == 0:
            for child, (_, _, began) in running.items():
                if time.monotonic() - began > TIMEOUT_S:
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.01)


def _fork(case: Case, work: Callable[[Case, Path], Any], folder: Path) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        (folder / "partial.json").write_text(json.dumps(work(case, folder)))
        (folder / "partial.json").rename(folder / "found.json")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
