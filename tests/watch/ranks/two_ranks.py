"""Runs a script on two gloo ranks, as torchrun would start it, and reads what each rank has found."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

HERE = Path(__file__).parent
ENDS_WITHIN = 300
"""Seconds for a whole script on a machine that is busy with other tests."""


def run(script: str, folder: Path, ended: tuple[int, int] = (0, 0)) -> list[dict[str, Any]]:
    """What `note` was given on each rank; `ended`: their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, str(HERE / script), str(folder)]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | address | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    outputs = []
    try:
        for process in ranks:
            outputs.append(process.communicate(timeout=ENDS_WITHIN)[0])
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == list(ended), "\n".join(outputs)
    noted = [folder / f"noted{rank}.json" for rank in "01"]
    return [json.loads(path.read_text()) if path.exists() else {} for path in noted]


def note(found: dict[str, Any]) -> None:
    """Leave what this rank has found for the test."""
    path = Path(sys.argv[1]) / f"noted{dist.get_rank()}.json"
    path.write_text(json.dumps(found))


def gone(pid: int, within: float) -> bool:
    """Whether a process ends in that many seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            os.kill(pid, signal.SIG_DFL)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
