"""Records the machine and the package versions of a run."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from nangrid.cell.config import CONF_DIR
from nangrid.cell.interpreter import PACKAGES


def read_environment(device: str, data_sha256: str) -> dict[str, Any]:
    """Everything that decides whether two cells may be compared bit for bit."""
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "git": _commit(),
        "data_sha256": data_sha256,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """Commit of the checkout that nangrid runs from; None for an installed wheel."""
    if not (CONF_DIR.parent / ".git").exists():
        return None
    result = subprocess.run(
        ["git", "-C", str(CONF_DIR.parent), "rev-parse", "--verify", "--quiet", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or None
