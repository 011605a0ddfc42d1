"""Runs one cell in its own process: locks its directory, redirects its output, trains, and records a crash."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nangrid.cell.script.config import ScriptConfig
from nangrid.grid.exit_reason import ExitReason, TimeLimitError, failed_record, oom_kills
from nangrid.grid.lock import acquire, set_aside
from nangrid.grid.other_python import run_with
from nangrid.grid.plan import CellPlan, is_done, requested_plan
from nangrid.grid.progress import report_steps
from nangrid.grid.request import read_request
from nangrid.records.cell import LOG, write_record
from nangrid.records.errors import InputError, RecordError
from nangrid.records.grid import read_verified

CELL_MODULE = "nangrid.cell.run"
"""Module of run_cell for a cell that is composed from conf/."""
SCRIPT_MODULE = "nangrid.cell.script.run"
"""Module of run_cell for a cell that the user's own script builds."""

TERMINATED = "it was stopped by SIGTERM"

ENVIRONMENT = {
    # Thread pools started by an import would not survive the fork; each cell sets its own number of threads.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Without it MKL's float32 products differ between 1 and 2 threads where a matrix has few rows.
    "MKL_CBWR": "AUTO,STRICT",
}
"""Environment of every cell's process."""

GRACE_S = 5.0
"""Seconds that threads may take to end after their cell has ended."""
SAFE_PATH, LENT = "PYTHONSAFEPATH", "nangrid"
"""Python's variable that keeps the working directory out of sys.path, and the value by which a launcher sets it."""

OOM_SCORE = "500"
PR_SET_PDEATHSIG = 1


class ReplyKind(StrEnum):
    """How a worker's attempt at its cell ended."""

    DONE = "done"
    """The record in the cell's directory is the answer; without one, the process's exit code is."""
    HELD = "held"
    """Another process runs the cell."""
    REFUSED = "refused"
    """The cell cannot be built as requested; the message says why."""
    STOPPED = "stopped"
    """The cell ended early and is unfinished; the message says why."""


@dataclass(frozen=True)
class Reply:
    """What a worker tells the launcher before it exits."""

    kind: ReplyKind = ReplyKind.DONE
    message: str = ""


def main(plan: CellPlan, grid_id: str, module: str, reply: Connection) -> None:
    """Run one cell for the launcher that forked this process, and die with it."""
    if os.environ.get(SAFE_PATH) == LENT:  # it is for the start alone: a script may start Python processes of its own
        del os.environ[SAFE_PATH]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the launcher decides what to stop
    _die_with_parent()
    threading.Thread(target=_die_with_launcher, daemon=True).start()
    with contextlib.suppress(OSError):  # when memory runs out, the kernel should kill a cell, not the launcher
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    reply.send(run(plan, grid_id, module))
    _end_threads()


def _end_threads() -> None:
    """End this process although a thread of the user's script may never end; Python would wait for it."""
    left = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    deadline = time.monotonic() + GRACE_S
    for thread in left:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in left):
        for child in multiprocessing.active_children():
            child.terminate()
        os._exit(0)


def run(plan: CellPlan, grid_id: str, module: str) -> Reply:
    """Run one cell by `module`.run_cell in this process, unless another runs it or has finished it."""
    stop = _Stop()
    try:
        lock = acquire(plan.directory())
        if lock is None:
            return Reply(ReplyKind.HELD)
        if _is_finished(plan):
            return Reply()
        set_aside(plan.directory())
        redirect_output(plan.directory() / LOG)
        return _run(plan, grid_id, module, stop, plan.config.python)
    except _Stop:
        return Reply(ReplyKind.STOPPED, TERMINATED)
    except InputError as error:
        return Reply(ReplyKind.REFUSED, str(error))
    except OSError as error:
        reason = _reason(error, plan.directory())
        if reason.status is None:
            return Reply(ReplyKind.STOPPED, reason.message)
        raise


class _Stop(BaseException):
    """SIGTERM, raised wherever the cell is. Not an Exception, so that no library handles it by accident."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._raise)

    def _raise(self, *_: Any) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise self


def _is_finished(plan: CellPlan) -> bool:
    # Another launcher may have finished it since it was planned.
    try:
        return is_done(plan, read_verified(plan.directory()))
    except RecordError:
        return False


def _run(plan: CellPlan, grid_id: str, module: str, stop: _Stop, python: str | None = None) -> Reply:
    """Run the cell in this process, or with another Python."""
    cell, began, killed = plan.directory(), time.perf_counter(), oom_kills()
    try:
        if python is not None:
            return run_with(python, cell, module)
        on_step = report_steps(cell, plan.config.horizon)
        run_cell = importlib.import_module(module).run_cell
        run_cell(
            plan.config,
            cell,
            cell_id=plan.cell_id,
            grid_id=grid_id,
            overrides=plan.overrides,
            on_step=on_step,
        )
    except InputError as error:
        return Reply(ReplyKind.REFUSED, str(error))
    except BaseException as error:
        # A _Stop raised inside a C++ callback arrives here as that library's own exception.
        if stop.requested:
            return Reply(ReplyKind.STOPPED, TERMINATED)
        with contextlib.suppress(OSError):
            traceback.print_exc()
            sys.stderr.flush()
        reason = _reason(error, cell, oom_kills() - killed)
        if reason.status is None:
            return Reply(ReplyKind.STOPPED, reason.message)
        write_record(cell, failed_record(plan, grid_id, reason, time.perf_counter() - began))
    return Reply()


def _reason(error: BaseException, cell: Path, oom_kills: int = 0) -> ExitReason:
    """Why the cell ended; `oom_kills`: the kernel's out-of-memory kills during its life."""
    return ExitReason.from_exception(error, oom_kills) if cell.is_dir() else ExitReason.stopped(f"{cell} was deleted")


def redirect_output(log: Path) -> None:
    """Send this process's output, native libraries and grandchildren included, to the cell's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _die_with_parent() -> None:
    """Have Linux kill this process when the fork server dies, even if it hangs and none of its threads can run."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The server lives as long as any process holds the write end of its "alive" pipe. Forked cells inherit it, so a
    # killed launcher would leave the server and the other cells running. multiprocessing has no public way to close
    # it (python/cpython Lib/multiprocessing/forkserver.py, 3.4 to 3.14); without the attribute, _die_with_launcher,
    # which polls, is what ends the cell.
    server = getattr(forkserver, "_forkserver", None)
    alive = getattr(server, "_forkserver_alive_fd", None)
    if server is not None and alive is not None:
        os.close(alive)
        server._forkserver_alive_fd = None


def _die_with_launcher() -> None:
    # A forked child survives a kill -9 of the launcher and of the fork server, and would train on unnoticed.
    launcher, parent = multiprocessing.parent_process(), os.getppid()
    assert launcher is not None
    while launcher.is_alive() and os.getppid() == parent:
        launcher.join(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


TIME_LIMIT = signal.SIGUSR2
"""Signal that submitit has Slurm send some time before a job's time limit."""


def run_requested(cell: str, module: str) -> Reply:
    """Run the cell that is requested in the directory `cell`, unless another process does."""
    os.environ.update(ENVIRONMENT)
    request = read_request(Path(cell))
    if request is None:
        raise InputError(f"{cell} holds no request.json: launch its grid again.")
    signal.signal(TIME_LIMIT, _time_is_up)
    return run(requested_plan(request, Path(cell)), request.grid_id, module)


def run_for(parent: int, cell: str, module: str) -> Reply:
    """Run the cell that the process `parent` has locked for another Python, which is this one; die with `parent`."""
    _die_with_parent()
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    stop = _Stop()
    try:
        request = read_request(Path(cell))
        assert request is not None
        plan = requested_plan(request, Path(cell))
        if isinstance(plan.config, ScriptConfig):  # it may import its neighbours, as in the launcher
            sys.path.insert(0, str(Path(plan.config.file).parent))
        return _run(plan, request.grid_id, module, stop)
    except _Stop:
        return Reply(ReplyKind.STOPPED, TERMINATED)


def _time_is_up(*_: Any) -> None:
    signal.signal(TIME_LIMIT, signal.SIG_IGN)
    raise TimeLimitError("stopped shortly before the job's time limit (hydra.launcher.timeout_min)")
