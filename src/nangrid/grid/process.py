"""Starts and stops the processes in which cells run, one per cell.

State leaks between the cells of one process (default dtype, seeds, patched functions), and importing torch and
transformers takes seconds. So cells are forked from a server that has imported everything and run nothing.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

from nangrid.cell.device import may_have_cuda
from nangrid.cell.script.config import ScriptConfig
from nangrid.grid import exit_reason, worker
from nangrid.grid.exit_reason import ExitReason
from nangrid.grid.plan import CellPlan
from nangrid.grid.worker import SAFE_PATH, Reply

PRELOAD = (
    "nangrid.cell",
    "wandb",
    "wandb.sdk.launch",  # wandb.init imports it; after torch that takes five times as long
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "pandas",
    worker.CELL_MODULE,
)
"""Modules that the server imports before the first fork, if they are installed."""

GRACE_S = 5.0
"""Seconds between SIGTERM and SIGKILL."""
START_ATTEMPTS = 5


@dataclass(frozen=True)
class CellProcess:
    """A cell that has been started."""

    plan: CellPlan
    process: BaseProcess
    replies: Connection
    started: float = field(default_factory=time.monotonic)
    oom_kills: int = field(default_factory=lambda: exit_reason.oom_kills())
    """The kernel's count of out-of-memory kills before the start."""

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def reply(self) -> Reply:
        """What the process replied before it ended; DONE if it died without a reply."""
        try:
            reply: Reply = self.replies.recv() if self.replies.poll() else Reply()
        except EOFError:
            return Reply()
        return reply

    def is_alive(self) -> bool:
        """Whether it still runs. One whose fork server died can no longer be waited for, so it is killed."""
        alive = self.process.is_alive()
        if not alive and self.process.exitcode == exit_reason.SERVER_LOST and self.process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
        return alive

    def exit_reason(self) -> ExitReason:
        """Why the process ended, for one that left neither a reply nor a record."""
        return ExitReason.from_exit_code(self.process.exitcode, exit_reason.oom_kills() - self.oom_kills)


class StartError(Exception):
    """A cell's process could not be started; the message says why."""


def warm_up() -> None:
    """Start the server, which imports what cells need in the background."""
    os.environ.update(worker.ENVIRONMENT)
    # A stopped cell leaves tqdm's semaphore behind, and Python's resource tracker would warn of it at the end.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    start_method = context()
    if isinstance(start_method, ForkServerContext):
        start_method.set_forkserver_preload(list(PRELOAD))
        with _safe_path():
            forkserver.ensure_running()


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Have the processes started in the block not import from the working directory, which may be a stranger's.

    Multiprocessing starts Python with -c, which puts that directory before the standard library. The launcher's own
    sys.path, with the folder of the user's script, reaches the process later.
    """
    if SAFE_PATH in os.environ:
        yield
        return
    os.environ[SAFE_PATH] = worker.LENT
    try:
        yield
    finally:
        del os.environ[SAFE_PATH]


def start(plan: CellPlan, grid_id: str) -> CellProcess:
    """Start the cell's process; StartError if the fork server keeps dying."""
    for _ in range(START_ATTEMPTS):
        warm_up()
        start_method = context()
        receiver, sender = start_method.Pipe(duplex=False)
        module = worker.SCRIPT_MODULE if isinstance(plan.config, ScriptConfig) else worker.CELL_MODULE
        process = start_method.Process(target=worker.main, args=(plan, grid_id, module, sender), name=plan.cell_id)
        try:
            with _safe_path():
                process.start()
        except (EOFError, ConnectionError):  # the server was killed in between; warm_up starts another one
            continue
        sender.close()
        return CellProcess(plan, process, receiver)
    raise StartError("no process of it can start, perhaps for lack of memory, CPU time or open files (see ulimit -a)")


def stop(cells: list[CellProcess]) -> None:
    """End the processes: SIGTERM first, SIGKILL after GRACE_S seconds."""
    for cell in cells:
        cell.process.terminate()
    deadline = time.monotonic() + GRACE_S
    for cell in cells:
        cell.process.join(max(0.0, deadline - time.monotonic()))
        if cell.process.is_alive():
            cell.process.kill()
            cell.process.join()


@functools.cache
def context() -> ForkServerContext | SpawnContext:
    """The start method of this machine's cells."""
    # A forked child cannot use CUDA once the server has touched it, and importing bitsandbytes touches it.
    if may_have_cuda():
        return multiprocessing.get_context("spawn")
    return multiprocessing.get_context("forkserver")
