"""What happens in the process of one cell? Lock, log, run; and at worst a record of what went wrong."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from nangrid.grid.failure import LOG, failed_record, set_aside
from nangrid.grid.lock import acquire
from nangrid.grid.plan import CellPlan, is_done
from nangrid.grid.progress import report_steps
from nangrid.records.cell import read_record, write_record
from nangrid.records.errors import InputError

HELD = "held"
REFUSED = "refused"


def main(plan: CellPlan, grid_id: str, module: str, reply: Connection) -> None:
    """Run one cell by `module`.run_cell.

    Replies (HELD, "") if another process runs the cell, and (REFUSED, sentence) if it cannot be run as asked
    and so leaves no record; otherwise the record is the answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; what to stop is the launcher's call
    threading.Thread(target=_die_with_launcher, daemon=True).start()
    cell = plan.directory()
    lock = acquire(cell)
    if lock is None:
        reply.send((HELD, ""))
    elif not is_done(plan, read_record(cell)):  # another launcher may have finished it since it was planned
        set_aside(cell)
        _redirect_output(cell / LOG)
        try:
            _run(plan, grid_id, module)
        except InputError as error:
            reply.send((REFUSED, str(error)))


def _run(plan: CellPlan, grid_id: str, module: str) -> None:
    began = time.perf_counter()
    try:
        cell = plan.directory()
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
    except InputError:
        raise
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        name, seconds = type(error).__name__, time.perf_counter() - began
        write_record(cell, failed_record(plan, grid_id, "error", name, str(error), seconds))


def _redirect_output(log: Path) -> None:
    """Send what this process says, native libraries and grandchildren included, to the cell's log."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _die_with_launcher() -> None:
    # A forked child outlives a kill -9 of the launcher and of the fork server, and would train on unseen.
    launcher, parent = multiprocessing.parent_process(), os.getppid()
    assert launcher is not None
    while launcher.is_alive() and os.getppid() == parent:
        launcher.join(1.0)
    os.kill(os.getpid(), signal.SIGKILL)
