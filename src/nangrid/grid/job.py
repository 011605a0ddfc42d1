"""What happens in a batch system's job? One cell, known by its directory, as in a process of its own here."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from nangrid.grid.child import Reply, run
from nangrid.grid.ending import TimeLimitError
from nangrid.grid.isolation import ENVIRONMENT
from nangrid.grid.request import read_request
from nangrid.records.errors import InputError

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
