"""Classifies how a cell's process ended without a record: an error, a timeout, or unfinished.

A crash, a timeout and exhausted memory are results, because the same cell would most likely end that way again. A
process that was killed from outside, or that met a full disk or a limit of the shell, shows nothing about the cell,
which stays unfinished.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

from nangrid.cell.ranks import RankDiedError
from nangrid.grid.plan import CellPlan
from nangrid.grid.progress import read_progress
from nangrid.records.cell import CLOCKS, LOG, CellError, CellRecord, Seconds, Trains

TAIL_LINES = 40

OUT_OF_MEMORY = "OutOfMemory"
OUT_OF_MEMORY_PHRASES = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to map segment",
)
FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
ACCESS_ERRNOS = (errno.EACCES, errno.ENOTDIR, errno.ESTALE, errno.EIO)
DESCRIPTOR_ERRNOS = (errno.EMFILE, errno.ENFILE)
OWN_SIGNALS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS)
"""What a process sends itself by a mistake in its code; every other signal comes from outside."""

SERVER_LOST = 255
"""Exit code that multiprocessing reports for every child of a fork server that died."""


class TimeLimitError(Exception):
    """The batch system is about to end the cell's process, because its time limit is near."""


@dataclass(frozen=True)
class ExitReason:
    """Why a cell has no record of its own; `status` is error or timeout, or None if the cell is unfinished."""

    status: str | None
    type: str
    message: str

    @classmethod
    def from_exit_code(cls, exit_code: int | None, oom_kills: int, process: str = "the cell's process") -> ExitReason:
        """From the exit code of a process of the cell (-n: signal n) and the kernel's OOM kills during its life."""
        if exit_code == SERVER_LOST:
            return cls.stopped("the fork server died, and the cell's process with it")
        if exit_code is None or exit_code >= 0:
            return cls("error", "ProcessDied", f"{process} ended with exit code {exit_code} and left no record")
        name = _signal_name(-exit_code)
        # A SIGKILL has no sender's name on it: the kernel's counter is the only sign that memory was the reason.
        if -exit_code == signal.SIGKILL and oom_kills:
            return cls("error", OUT_OF_MEMORY, f"the kernel's out-of-memory killer ended {process} (SIGKILL)")
        message = f"{process} was killed by {name}"
        return cls("error", "ProcessDied", message) if -exit_code in OWN_SIGNALS else cls.stopped(message)

    @classmethod
    def from_exception(cls, error: BaseException, oom_kills: int = 0) -> ExitReason:
        """From what the cell raised, and the kernel's OOM kills during its life."""
        message = str(error)
        if isinstance(error, RankDiedError):
            return cls.from_exit_code(error.exit_code, oom_kills, f"the process of rank {error.rank}")
        if isinstance(error, TimeLimitError):
            return cls("timeout", "TimeoutError", message)
        if outside := _outside(error):
            return cls.stopped(outside)
        # torch's CPU allocator and bitsandbytes raise a plain RuntimeError: only its text names the reason.
        if isinstance(error, MemoryError) or any(phrase in message.lower() for phrase in OUT_OF_MEMORY_PHRASES):
            return cls._out_of_memory(message or "Python could not allocate memory")
        return cls("error", type(error).__name__, message)

    @classmethod
    def _out_of_memory(cls, message: str) -> ExitReason:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return cls("error", OUT_OF_MEMORY, message)
        return cls.stopped(f"the address space is limited to {limit / 2**30:.1f} GiB (ulimit -v): {message}")

    @classmethod
    def stopped(cls, message: str) -> ExitReason:
        """Ended from outside: the cell is unfinished."""
        return cls(None, "Stopped", message)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


def _outside(error: BaseException) -> str | None:
    """The fault of the machine that the error tells of; None if there is none."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None:  # Rust and C++ libraries keep the reason in the text alone
        known = (*FULL_ERRNOS, *ACCESS_ERRNOS, *DESCRIPTOR_ERRNOS)
        number = next((candidate for candidate in known if os.strerror(candidate) in str(error)), None)
    if "No usable temporary directory" in str(error):  # in the words of the standard library
        return "no temporary directory can be written (set TMPDIR to one)"
    if number in DESCRIPTOR_ERRNOS:
        return "too many files are open (see ulimit -n)"
    place = getattr(error, "filename", None) or "the disk"
    if number in FULL_ERRNOS:
        return f"{place} cannot be written ({os.strerror(number)})"
    if number in ACCESS_ERRNOS:
        return f"{place} cannot be read or written ({os.strerror(number)})"
    return None if error.__cause__ is None else _outside(error.__cause__)


def oom_kills() -> int:
    """Processes that the kernel killed for lack of memory since boot; 0 where it does not report them."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def failed_record(plan: CellPlan, grid_id: str, reason: ExitReason, seconds: float) -> CellRecord:
    """A record of status error or timeout: how far the cell got, and the last lines of its log."""
    assert reason.status is not None
    progress = read_progress(plan.directory())
    return CellRecord(
        cell_id=plan.cell_id,
        grid_id=grid_id,
        overrides=plan.overrides,
        factors=plan.factors,
        status=reason.status,
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
        error=CellError(reason.type, reason.message, log_tail(plan.directory())),
    )


def log_tail(cell: Path) -> str:
    """The last lines of the cell's log; empty if there is no log."""
    try:
        return "\n".join((cell / LOG).read_text(errors="replace").splitlines()[-TAIL_LINES:])
    except FileNotFoundError:
        return ""
