"""Connects the ranks of one run: one number per check, and after a failure what each has found.

Nothing here waits for a rank that does not come. The number has a timeout, after which each rank is watched by itself.
A rank that examines its step gives a sign of life every second, and is not waited for when it gives none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from nangrid.records.errors import InputError

logger = logging.getLogger(__name__)

_AGREEMENT = timedelta(seconds=60)
"""How far apart the ranks may come to the same optimizer step."""
_CREATION = timedelta(minutes=30)
"""How far apart they may create their Watch: one may prepare the data while the others wait."""
_SILENCE = 8.0
"""Seconds without a sign of life after which a rank is not waited for."""
_made = 0


class Ranks:
    """The ranks of a run, as one of them sees them."""

    def __init__(self) -> None:
        """Meet the other ranks; InputError if some of them create no Watch."""
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        _meet(self.rank, self.size)
        # Numbers on the host, whatever the device, and apart from the collectives of the loop.
        group = dist.new_group(backend="gloo", timeout=_AGREEMENT)
        self._group = group
        self._store = dist.distributed_c10d._get_process_group_store(group)
        self.together = True
        """Whether the ranks still come to the same steps."""
        self._rounds = 0

    def least(self, number: int) -> int:
        """The least of the ranks' numbers; this rank's own if they do not step together."""
        if not self.together:
            return number
        answer = torch.tensor(number)
        try:
            dist.all_reduce(answer, dist.ReduceOp.MIN, group=self._group)
        except RuntimeError as error:
            self.together = False
            logger.warning(
                "rank %d did not hear from the others at an optimizer step (%s): from here on each rank is watched by "
                "itself.",
                self.rank,
                str(error).partition("\n")[0],
            )
            return number
        return int(answer)

    def any_of(self, found: bool) -> bool:
        """Whether any of the ranks has found it."""
        return not self.least(not found)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Give signs of life within the block."""
        done = threading.Event()
        thread = threading.Thread(target=self._give_signs, args=(done,), daemon=True, name="nangrid-signs-of-life")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _give_signs(self, done: threading.Event) -> None:
        number = 0
        try:
            while not done.is_set():
                number += 1
                self._store.set(f"alive/{self.rank}", str(number))
                done.wait(1.0)
        except RuntimeError:
            logger.info("the store of the ranks is gone", exc_info=True)

    def gather(self, text: str) -> list[str | None]:
        """What each rank says in this round; None of one that gives no sign of life."""
        self._rounds += 1
        answers: list[str | None] = [None] * self.size
        answers[self.rank] = text
        try:
            self._store.set(self._key(self.rank), text)
            self._collect(answers)
        except RuntimeError:
            logger.info("the store of the ranks is gone", exc_info=True)
        return answers

    def _key(self, rank: int) -> str:
        return f"{self._rounds}/{rank}"

    def _collect(self, answers: list[str | None]) -> None:
        now = time.monotonic()
        missing = {rank: ("", now) for rank in range(self.size) if rank != self.rank}
        """The last sign of life of each rank, and when it was noticed."""
        while missing:
            for rank, (sign, since) in list(missing.items()):
                if self._store.check([self._key(rank)]):
                    answers[rank] = self._store.get(self._key(rank)).decode()
                    del missing[rank]
                elif (latest := self._sign_of(rank)) != sign:
                    missing[rank] = (latest, time.monotonic())
                elif time.monotonic() - since > _SILENCE:
                    del missing[rank]
            time.sleep(0.02)

    def _sign_of(self, rank: int) -> str:
        key = f"alive/{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else ""


def ranks_of_this_run() -> Ranks | None:
    """The ranks that train together; None for a process that trains alone."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return Ranks()


def _meet(rank: int, size: int) -> None:
    """Wait until every rank has come to the same Watch of its script."""
    global _made
    _made += 1
    store = dist.distributed_c10d._get_default_store()
    keys = [f"nangrid/{_made}/{each}" for each in range(size)]
    store.set(keys[rank], "")
    try:
        store.wait(keys, _CREATION)
    except RuntimeError as error:
        absent = [str(each) for each, key in enumerate(keys) if not store.check([key])]
        raise InputError(f"No Watch was created on rank {', '.join(absent)}: create one on every rank.") from error
