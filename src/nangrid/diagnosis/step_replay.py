"""Replays the failing step with one change undone, before any cell is run.

One step ranks what to try first and proves nothing; cells prove.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from nangrid.cell.config import Config
from nangrid.grid.plan import CellPlan
from nangrid.grid.process import context, warm_up
from nangrid.grid.worker import redirect_output
from nangrid.records.cell import CellRecord
from nangrid.records.errors import InputError


def survives(failed: CellPlan, record: CellRecord, others: Sequence[Config]) -> list[bool | None]:
    """For each config whether the cell's failing step, replayed under it, stays finite.

    None if the config changes which step this is, or if the replay crashes.
    """
    config = failed.cell_config
    # it ran with other packages, or its gradients are those of several ranks
    if record.snapshot is None or config.python is not None or config.processes > 1:
        return [None] * len(others)
    warm_up()
    return [_ask(failed, record.snapshot, config) for config in others]


def _ask(failed: CellPlan, snapshot: str, config: Config) -> bool | None:
    processes = context()
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_answer, args=(failed, snapshot, config, sender), daemon=True)
    process.start()
    sender.close()
    try:
        answer: bool | None = receiver.recv()
    except EOFError:
        answer = None
    process.join()
    return answer


def _answer(failed: CellPlan, snapshot: str, config: Config, reply: Connection) -> None:
    """Replay in this process, which was started for it."""
    redirect_output(Path(os.devnull))
    from nangrid.cell.replay import replay_under
    from nangrid.watch.state.snapshot import Snapshot

    try:
        counterfactual = replay_under(config, failed.cell_config, Snapshot.load((failed.directory() / snapshot).parent))
    except InputError:
        reply.send(None)
        return
    reply.send(counterfactual.replay.clock is None)
