"""How did a cell that left no record end, and is that a result?

A crash, a timeout and exhausted memory are results: the same cell would most likely end so again. A process
that was killed from outside, or that met a full disk, says nothing about the cell: it stays unfinished.
"""

from __future__ import annotations

import errno
import signal
from dataclasses import dataclass
from pathlib import Path

from nangrid.grid.plan import CellPlan
from nangrid.grid.progress import read_progress
from nangrid.records.cell import CLOCKS, CellError, CellRecord, Seconds, Trains

LOG = "log.txt"
TAIL_LINES = 40

OUT_OF_MEMORY = "OutOfMemory"
SAYS_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

SERVER_LOST = 255
"""The exit code that multiprocessing reports for every child of a fork server that died."""


class TimeLimitError(Exception):
    """The batch system is about to end the cell's process: its time is up."""


@dataclass(frozen=True)
class ExitReason:
    """What is known of a cell without a record; `status` is error or timeout, or None if it is unfinished."""

    status: str | None
    type: str
    message: str


def of_process(exit_code: int | None, oom_kills: int) -> ExitReason:
    """By the exit code of the cell's process and the kernel's out-of-memory kills during its life."""
    if exit_code == SERVER_LOST:
        return ExitReason(None, "Stopped", "the fork server died, and the cell's process with it")
    if exit_code is None or exit_code >= 0:
        return ExitReason("error", "ProcessDied", f"the process ended with exit code {exit_code} and left no record")
    name = signal.Signals(-exit_code).name
    if -exit_code == signal.SIGKILL and oom_kills:
        return ExitReason("error", OUT_OF_MEMORY, "the kernel's out-of-memory killer ended the process (SIGKILL)")
    status, type_name = (None, "Stopped") if -exit_code in FROM_OUTSIDE else ("error", "ProcessDied")
    return ExitReason(status, type_name, f"the cell's process was killed by {name}")


def of_error(error: BaseException) -> ExitReason:
    """By what the cell raised."""
    if isinstance(error, OSError) and error.errno in STORAGE:
        return ExitReason(None, "Stopped", f"{error.filename or 'the disk'} cannot be written ({error.strerror})")
    said = str(error)
    if isinstance(error, TimeLimitError):
        return ExitReason("timeout", "TimeoutError", said)
    if isinstance(error, MemoryError) or any(phrase in said.lower() for phrase in SAYS_OUT_OF_MEMORY):
        return ExitReason("error", OUT_OF_MEMORY, said or "Python could not allocate memory")
    return ExitReason("error", type(error).__name__, said)


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def failed_record(plan: CellPlan, grid_id: str, ending: ExitReason, seconds: float) -> CellRecord:
    """A record of status error or timeout: nothing was learned but how far it came and what it last said."""
    assert ending.status is not None
    progress = read_progress(plan.directory())
    return CellRecord(
        cell_id=plan.cell_id,
        grid_id=grid_id,
        overrides=plan.overrides,
        factors=plan.factors,
        status=ending.status,
        horizon=plan.config.horizon,
        steps_done=progress.steps_done if progress else 0,
        censored=False,
        onset=None,
        clocks=dict.fromkeys(CLOCKS),
        trains=Trains(None, [], None, None, None),
        ledger={},
        environment={},
        autopsy=None,
        snapshot=None,
        seconds=Seconds(setup=seconds, train=0.0, replay=0.0),
        peak_rss_bytes=progress.peak_rss_bytes if progress else 0,
        error=CellError(ending.type, ending.message, log_tail(plan.directory())),
    )


def log_tail(cell: Path) -> str:
    """The last lines of the cell's log."""
    try:
        return "\n".join((cell / LOG).read_text(errors="replace").splitlines()[-TAIL_LINES:])
    except FileNotFoundError:
        return ""
