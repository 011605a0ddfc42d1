"""Collects every case: the published patterns, the threads, the generated and the healthy ones."""

from __future__ import annotations

import importlib
from pathlib import Path

from case import CASES, Case

HERE = Path(__file__).resolve().parent
PARTS = ("threads", "published", "generated", "healthy")


def load(parts: tuple[str, ...] = PARTS) -> dict[str, Case]:
    """Import the cases of these parts; name -> case."""
    for part in parts:
        for path in sorted((HERE / part).glob("*.py")):
            importlib.import_module(f"{part}.{path.stem}")
    return {name: case for name, case in CASES.items() if case.part in parts}
