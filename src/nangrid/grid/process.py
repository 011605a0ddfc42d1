"""How does a cell get a process of its own, and how does it lose it?

State leaks between the jobs of one process (default dtype, seeds, patched functions), and importing torch and
transformers costs seconds: so cells are forked from a server which has imported everything and run nothing.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

from nangrid.cell.device import may_have_cuda
from nangrid.cell.script.config import ScriptConfig
from nangrid.grid import ending, worker
from nangrid.grid.plan import CellPlan

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
"""What the server imports before the first fork, where it is installed."""


GRACE_S = 5.0
STARTS = 5


@dataclass(frozen=True)
class CellProcess:
    """A cell that has been started."""

    plan: CellPlan
    process: BaseProcess
    replies: Connection
    started: float = field(default_factory=time.monotonic)
    oom_kills: int = field(default_factory=ending.oom_kills)
    """Of the kernel, before the start."""

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def reply(self) -> worker.Reply:
        """What the process said before it ended; ("", "") if nothing."""
        try:
            answer: worker.Reply = self.replies.recv() if self.replies.poll() else ("", "")
        except EOFError:
            return "", ""
        return answer

    def is_alive(self) -> bool:
        """Whether it still runs. One whose fork server died is dead to us, and so must not live on."""
        alive = self.process.is_alive()
        if not alive and self.process.exitcode == ending.SERVER_LOST and self.process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)
        return alive

    def ending(self) -> ending.ExitReason:
        """What to think of a process that left neither a reply nor a record."""
        return ending.of_process(self.process.exitcode, ending.oom_kills() - self.oom_kills)


def warm_up() -> None:
    """Let the server import what cells need, in the background."""
    os.environ.update(worker.ENVIRONMENT)
    # A stopped cell leaves tqdm's semaphore behind: Python's resource tracker would warn of it at the end.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    made_by = context()
    if isinstance(made_by, ForkServerContext):
        made_by.set_forkserver_preload(list(PRELOAD))
        forkserver.ensure_running()


def start(plan: CellPlan, grid_id: str) -> CellProcess:
    """Start the cell's process; ConnectionError if the fork server keeps dying."""
    for _ in range(STARTS):
        warm_up()
        made_by = context()
        receiver, sender = made_by.Pipe(duplex=False)
        module = worker.SCRIPT_MODULE if isinstance(plan.config, ScriptConfig) else worker.CELL_MODULE
        process = made_by.Process(target=worker.main, args=(plan, grid_id, module, sender), name=plan.cell_id)
        try:
            process.start()
        except (EOFError, ConnectionError):  # the server was killed meanwhile: another one is started
            continue
        sender.close()
        return CellProcess(plan, process, receiver)
    raise ConnectionError(f"the fork server died {STARTS} times while cell {plan.cell_id} was being started")


def stop(cells: list[CellProcess]) -> None:
    """End the processes: asked first, then killed."""
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
    """What makes processes here."""
    # A forked child cannot use CUDA once the server has touched it, and importing bitsandbytes touches it.
    if may_have_cuda():
        return multiprocessing.get_context("spawn")
    return multiprocessing.get_context("forkserver")
