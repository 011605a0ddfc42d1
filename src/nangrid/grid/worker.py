"""What happens in the process of one cell? Lock, log, run; and at worst a record of what went wrong."""

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
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nangrid.grid.ending import LOG, TimeLimitError, failed_record, of_error
from nangrid.grid.lock import acquire, set_aside
from nangrid.grid.plan import CellPlan, is_done
from nangrid.grid.progress import report_steps
from nangrid.grid.request import read_request
from nangrid.records.cell import write_record
from nangrid.records.errors import InputError, RecordError
from nangrid.records.grid import read_verified

CELL_MODULE = "nangrid.cell.run"
"""Where the cell's process finds run_cell."""
SCRIPT_MODULE = "nangrid.cell.script.run"
"""The same for a cell that a user's own script builds."""

HELD = "held"
REFUSED = "refused"
STOPPED = "stopped"

ASKED = "it was asked to stop (SIGTERM)"

ENVIRONMENT = {
    # Pools started by an import would not survive the fork; each cell asks for its own number of threads.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Else MKL's float32 products differ between 1 and 2 threads where a matrix has few rows.
    "MKL_CBWR": "AUTO,STRICT",
}
"""Of every cell's process."""

OOM_SCORE = "500"
PR_SET_PDEATHSIG = 1

Reply = tuple[str, str]
"""(HELD, "") if another process runs the cell, (REFUSED, sentence) if it cannot be run as asked, (STOPPED, why)
if it ended early and is unfinished. ("", "") otherwise: the record is the answer."""


def main(plan: CellPlan, grid_id: str, module: str, reply: Connection) -> None:
    """Run one cell for the launcher that forked this process, and die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; what to stop is the launcher's call
    _die_with_parent()
    threading.Thread(target=_die_with_launcher, daemon=True).start()
    with contextlib.suppress(OSError):  # where memory runs out the kernel should take a cell, not the launcher
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    reply.send(run(plan, grid_id, module))


def run(plan: CellPlan, grid_id: str, module: str) -> Reply:
    """Run one cell by `module`.run_cell in this process, unless another runs it or has finished it."""
    stop = _Stop()
    try:
        lock = acquire(plan.directory())
        if lock is None:
            return HELD, ""
        if _is_finished(plan):
            return "", ""
        set_aside(plan.directory())
        redirect_output(plan.directory() / LOG)
        return _run(plan, grid_id, module, stop)
    except _Stop:
        return STOPPED, ASKED
    except OSError as error:
        return _stopped_by(error)


class _Stop(BaseException):
    """SIGTERM, raised where the cell happens to be."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._raise)

    def _raise(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise self


def _is_finished(plan: CellPlan) -> bool:
    # another launcher may have finished it since it was planned
    try:
        return is_done(plan, read_verified(plan.directory()))
    except RecordError:
        return False


def _run(plan: CellPlan, grid_id: str, module: str, stop: _Stop) -> Reply:
    cell, began = plan.directory(), time.perf_counter()
    try:
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
        return REFUSED, str(error)
    except BaseException as error:
        # what is raised inside a kernel's callback may arrive as another exception
        if stop.asked:
            return STOPPED, ASKED
        with contextlib.suppress(OSError):
            traceback.print_exc()
            sys.stderr.flush()
        ending = of_error(error)
        if ending.status is None:
            return STOPPED, ending.message
        write_record(cell, failed_record(plan, grid_id, ending, time.perf_counter() - began))
    return "", ""


def _stopped_by(error: OSError) -> Reply:
    ending = of_error(error)
    if ending.status is not None:
        raise error
    return STOPPED, ending.message


def redirect_output(log: Path) -> None:
    """Send what this process says, native libraries and grandchildren included, to the cell's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _die_with_parent() -> None:
    """Have Linux kill this process when the fork server dies, even where it hangs and no thread of it can run."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # the server lives as long as anybody holds this end of a pipe; the launcher alone should
    server = vars(forkserver._forkserver)
    if server.get("_forkserver_alive_fd") is not None:
        os.close(server["_forkserver_alive_fd"])
        server["_forkserver_alive_fd"] = None


def _die_with_launcher() -> None:
    # A forked child outlives a kill -9 of the launcher and of the fork server, and would train on unseen.
    launcher, parent = multiprocessing.parent_process(), os.getppid()
    assert launcher is not None
    while launcher.is_alive() and os.getppid() == parent:
        launcher.join(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


TIME_LIMIT = signal.SIGUSR2
"""What submitit has Slurm send some time before a job's limit."""


def run_requested(cell: str, module: str) -> Reply:
    """Run the cell that is asked for in the directory `cell`, unless another process does."""
    os.environ.update(ENVIRONMENT)
    request = read_request(Path(cell))
    if request is None:
        raise InputError(f"{cell} holds no request: launch its grid again.")
    signal.signal(TIME_LIMIT, _time_is_up)
    return run(request.plan(Path(cell)), request.grid_id, module)


def _time_is_up(*_: Any) -> None:
    signal.signal(TIME_LIMIT, signal.SIG_IGN)
    raise TimeLimitError("stopped shortly before the job's time limit (hydra.launcher.timeout_min)")
