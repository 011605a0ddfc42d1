"""Runs a cell on several ranks, as torchrun would: this process is rank 0, and starts the others.

When another rank fails, rank 0 may be computing, in a collective, or waiting for the others to come, for half an hour
by default. A thread watches the other ranks and ends all three within seconds.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from operator import itemgetter
from typing import Any

from nangrid.cell.device import may_have_cuda
from nangrid.records.errors import InputError

_GRACE_S = 10.0
"""Seconds that the other ranks may take to end after rank 0 has trained."""
_NOTICE_S = 3.0
"""Seconds after a broken connection within which the rank that broke it is known."""
_SETTLE_S = 0.5
"""Seconds after the first failure in which those that follow from it are noticed, too."""
_INTERRUPT = signal.SIGUSR1
_MOST_TOLD = 10_000
"""Characters of another rank's error that are told."""

logger = logging.getLogger(__name__)

Failure = tuple[float, BaseException]
"""When another rank failed, and why; 0.0 for one that was killed, because no failure of another does that."""


class RankFailedError(BaseException):
    """Another rank raised an error; the message says which, and what.

    Not an Exception: it must also end the replay that a step with a broken connection has started.
    """


class RankDiedError(BaseException):
    """The process of another rank died; not an Exception either."""

    def __init__(self, rank: int, exit_code: int) -> None:
        super().__init__(f"the process of rank {rank} ended with exit code {exit_code}")
        self.rank = rank
        self.exit_code = exit_code
        """As multiprocessing has it: -n if signal n ended it."""


class OtherRanks:
    """The other ranks of a cell; none if it trains alone."""

    def __init__(self, ranks: list[_Rank], store: Any = None) -> None:
        self.ranks = ranks
        self.failure: BaseException | None = None
        """What happened on the rank that failed first."""
        self._store = store
        self._trained = False
        self._failed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="nangrid-other-ranks")

    def watch(self) -> None:
        """Notice from here on when one of them fails."""
        if self.ranks:
            signal.signal(_INTERRUPT, self._raise)
            self._thread.start()

    def join(self) -> None:
        """Wait some seconds for them to end, too; raises what happened if one of them fails."""
        if self.ranks:
            self._thread.join(_GRACE_S)
            if self._thread.is_alive():
                logger.warning("other ranks are still running %g s after rank 0 has trained: ending them.", _GRACE_S)
        self._trained = True
        if self.failure is not None:
            raise self.failure

    def reason_of(self, error: BaseException) -> BaseException:
        """What to raise for an error of rank 0: the failure of another rank, if that is the reason."""
        if isinstance(error, RuntimeError) and self.ranks:  # what torch raises if a connection breaks
            self._failed.wait(_NOTICE_S)
        return error if self.failure is None or isinstance(error, InputError) else self.failure

    def kill(self) -> None:
        """Leave no process behind."""
        self._trained = True
        for rank in self.ranks:
            rank.process.kill()

    def _watch(self) -> None:
        running, failures = list(self.ranks), list[Failure]()
        while running and not failures:
            failures = _failures(running, None)
        if failures and not self._trained:
            failures += _failures(running, _SETTLE_S)
            _, self.failure = min(failures, key=itemgetter(0))
            self._failed.set()
            self._store = None  # without a server nobody waits for it
            signal.pthread_kill(threading.main_thread().ident or 0, _INTERRUPT)

    def _raise(self, *_: Any) -> None:
        if self.failure is not None and not self._trained:
            raise self.failure


class _Rank:
    """The process of another rank, and the pipe that brings it its environment and returns its error."""

    def __init__(self, number: int, run: Callable[[], None]) -> None:
        self.number = number
        self.pipe, other_end = multiprocessing.Pipe()
        # A forked process imports nothing anew, but could use no GPU. It is forked before the store's thread runs.
        method: Any = multiprocessing.get_context("spawn" if may_have_cuda() else "fork")
        self.process: BaseProcess = method.Process(target=_other, args=(other_end, number, run))
        self.process.start()
        other_end.close()

    def failure(self) -> Failure | None:
        """When and why the process, which has ended, failed; None if it did not."""
        self.process.join()
        code = self.process.exitcode
        if not code:
            return None
        try:
            failure: Failure = self.pipe.recv()
        except EOFError:
            # torch aborts a process whose peers are gone, and a script may exit when its collective fails
            consequence = code > 0 or code == -signal.SIGABRT
            failure = time.monotonic() if consequence else 0.0, RankDiedError(self.number, code)
        return failure


@contextmanager
def rank_zero(size: int | None, run: Callable[[], None]) -> Iterator[OtherRanks]:
    """Within the block this process is rank 0 of `size`, and each of the others calls `run`; None: it trains alone.

    If another rank fails before `join` has returned, the block ends with InputError if that was raised there, else with
    RankFailedError or RankDiedError.
    """
    if size is None:
        yield OtherRanks([])
        return
    import torch.distributed as dist  # not above: a launcher knows the errors, but does without torch

    ranks = [_Rank(number, run) for number in range(1, size)]
    # As the agent of torchrun does: the script finds the store by its environment, whatever it initialises.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for rank in ranks:
        rank.pipe.send(shared)
    os.environ.update(_environment(shared, 0))
    others = OtherRanks(ranks, store)
    del store  # the watching thread holds the last reference
    try:
        others.watch()
        yield others
        others.join()
        _leave()
    except BaseException as error:
        reason = others.reason_of(error)
        if reason is error:
            raise
        raise reason from error
    finally:
        others.kill()


def _failures(running: list[_Rank], timeout: float | None) -> list[Failure]:
    """Wait for ranks to end, and remove them from `running`; the failures among them."""
    ended = wait([rank.process.sentinel for rank in running], timeout)
    gone = [rank for rank in running if rank.process.sentinel in ended]
    for rank in gone:
        running.remove(rank)
    return [failure for rank in gone if (failure := rank.failure())]


def _other(pipe: Connection, number: int, run: Callable[[], None]) -> None:
    """Run the function as another rank, which ends with rank 0."""
    threading.Thread(target=_end_with_rank_zero, daemon=True).start()
    os.environ.update(_environment(pipe.recv(), number))
    try:
        run()
    except Exception as error:
        # rank 0 reads it when the process has ended, which more than a pipe holds would prevent
        told = RankFailedError(f"rank {number} raised {type(error).__name__}: {str(error)[:_MOST_TOLD]}")
        pipe.send((time.monotonic(), error if isinstance(error, InputError) else told))
        raise
    _leave()


def _environment(shared: Mapping[str, str], rank: int) -> dict[str, str]:
    return {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}


def _end_with_rank_zero() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
