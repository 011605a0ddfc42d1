"""A run_cell of two ranks without a model, whose rank 1 fails as the seed says while rank 0 waits for it."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nangrid.cell.config import Config
from nangrid.cell.ranks import rank_zero
from nangrid.records.errors import InputError

RAISES, REFUSES, KILLED, NEVER_COMES, COMPUTES, HANGS = range(6)


def run_cell(config: Config, directory: Path, *, on_step: Callable[[int, float], None], **_: Any) -> None:
    with rank_zero(config.processes, partial(rank_one, config.seed, directory)):
        while config.seed == COMPUTES:
            time.sleep(0.01)
        dist.init_process_group("gloo")
        on_step(0, 1.0)
        exchange()


def rank_one(seed: int, directory: Path) -> None:
    (directory.parents[1] / f"rank_one_of_{seed}").write_text(str(os.getpid()))
    if seed in (NEVER_COMES, COMPUTES):
        os._exit(9)
    dist.init_process_group("gloo")
    if seed == RAISES:
        raise ValueError("index 7 is out of range")
    if seed == REFUSES:
        raise InputError("data.length=9 is too long: type data.length=8.")
    if seed == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def exchange() -> None:
    for _ in range(1000):
        dist.all_reduce(torch.ones(1))
