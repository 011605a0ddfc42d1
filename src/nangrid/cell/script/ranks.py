"""Runs a script's cell on several ranks, as torchrun would: this process is rank 0, and starts the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch.distributed as dist

from nangrid.cell.device import may_have_cuda
from nangrid.cell.script.config import PROCESSES

_GRACE_S = 10.0


@contextmanager
def rank_zero(levels: Mapping[str, Any], run: Callable[[], None]) -> Iterator[None]:
    """Within the block this process is rank 0 of as many as the levels say; each of the others calls `run`."""
    if PROCESSES not in levels:
        yield
        return
    size = int(levels[PROCESSES])
    others = [_started(rank, run) for rank in range(1, size)]
    # As the agent of torchrun does: the script finds the store by its environment, whatever it initialises.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for _, environment in others:
        environment.send(shared)
    os.environ.update(_environment(shared, 0))
    try:
        yield
        for process, _ in others:
            process.join(_GRACE_S)
    finally:
        for process, _ in others:
            process.kill()
        _leave()


def _started(rank: int, run: Callable[[], None]) -> tuple[BaseProcess, Connection]:
    """The process of another rank, and the pipe on which it waits for its environment."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # A forked process imports nothing anew, but could use no GPU. It is forked before the store's thread runs.
    method: Any = multiprocessing.get_context("spawn" if may_have_cuda() else "fork")
    process: BaseProcess = method.Process(target=_other, args=(receiver, rank, run), daemon=True)
    process.start()
    return process, sender


def _other(environment: Connection, rank: int, run: Callable[[], None]) -> None:
    """Run the function as another rank, which ends with rank 0."""
    threading.Thread(target=_end_with_rank_zero, daemon=True).start()
    os.environ.update(_environment(environment.recv(), rank))
    try:
        run()
    finally:
        _leave()


def _environment(shared: Mapping[str, str], rank: int) -> dict[str, str]:
    return {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def _end_with_rank_zero() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
