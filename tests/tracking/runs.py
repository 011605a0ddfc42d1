"""Opens runs as a cell does, and reads what they left with the readers of W&B."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nangrid.tracking.wandb_run import Run, open_run


def start(directory: Path, **changes: Any) -> Run:
    options: dict[str, Any] = {
        "name": "wandb",
        "mode": "offline",
        "project": "nangrid",
        "entity": None,
        "directory": directory,
        "cell_id": "cell",
        "grid_id": "grid",
        "config": {"dtype": "fp16", "dtype.storage": "fp16", "seed": 0},
    }
    return open_run(**options | changes)


def wandb_cli(*arguments: str, cwd: Path | None = None) -> str:
    command = [sys.executable, "-m", "wandb", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def inspect(directory: Path) -> list[dict[str, Any]]:
    """The records of an offline run, as W&B's own reader prints them."""
    (run,) = (directory / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


def merged(records: list[dict[str, Any]], kind: str, of: Callable[[Any], Any]) -> dict[str, Any]:
    updates: dict[str, Any] = {}
    for record in records:
        if record["type"] == kind:
            updates |= of(record[kind])
    return updates


def files_with(directory: Path, secret: str) -> list[Path]:
    written = [path for path in directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in written)
    return [path for path in written if secret.encode() in path.read_bytes()]
