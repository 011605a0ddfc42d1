"""Runs a script on gloo ranks, mostly two, as torchrun would start it, and reads what each rank has found."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from nangrid import NonFiniteError
from nangrid.records.autopsy import Autopsy, read_autopsy

HERE = Path(__file__).parent
APART = Path(sys.prefix) / "apart"
ENDS_WITHIN = 300
"""Seconds for a whole script on a machine that is busy with other tests."""


@dataclass
class Found:
    """What a script has found on its ranks."""

    folder: Path
    noted: list[dict[str, Any]]
    """What `note` was given on each rank."""

    def merged(self, name: str, raises: bool = True) -> Autopsy:
        """The merged autopsy of a loop, which each rank has left by the same error if it `raises`."""
        autopsy = read_autopsy(self.folder / name)
        assert autopsy is not None
        if raises:
            messages = {noted[name.partition("/")[0]]["message"] for noted in self.noted}
            assert len(messages) == 1, "each rank has raised the same"
            assert messages.pop().startswith(f"{autopsy.clock} went non-finite at step {autopsy.step}\n")
        return autopsy


def found_by(script: str, ended: tuple[int, ...] = (0, 0), apart: bool = False) -> Callable[..., Found]:
    """A fixture that runs a script on as many ranks as there are exit codes in `ended`.

    `apart`: with DeepSpeed, which the Makefile installs apart from the other packages.
    """

    @pytest.fixture(scope="module")
    def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
        if apart and not APART.exists():
            pytest.skip(f"DeepSpeed is not in {APART}: run `make setup`.")
        folder = tmp_path_factory.mktemp(Path(script).stem)
        path = {"PYTHONPATH": str(APART)} if apart else {}
        return Found(folder, run(script, folder, ended, path))

    return found


def run(
    script: str, folder: Path, ended: tuple[int, ...], environment: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """What `note` was given on each rank; `ended`: their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(len(ended))}
    command = [sys.executable, str(HERE / script), str(folder)]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ
            | address
            | (environment or {})
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(len(ended))
    ]
    outputs = []
    try:
        for process in ranks:
            outputs.append(process.communicate(timeout=ENDS_WITHIN)[0])
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == list(ended), "\n".join(outputs)
    noted = [folder / f"noted{rank}.json" for rank in range(len(ended))]
    return [json.loads(path.read_text()) if path.exists() else {} for path in noted]


def note(found: dict[str, Any]) -> None:
    """Leave what this rank has found for the test."""
    path = Path(sys.argv[1]) / f"noted{dist.get_rank()}.json"
    path.write_text(json.dumps(found))


def ending(loop: Callable[[], object]) -> dict[str, Any]:
    """How a loop ends: with the message of NonFiniteError, or by itself."""
    try:
        loop()
    except NonFiniteError as error:
        return {"message": str(error)}
    return {}


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
