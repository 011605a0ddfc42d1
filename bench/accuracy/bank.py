"""Collects every case: the published patterns, the threads, the generated and the healthy ones."""

from __future__ import annotations

import importlib
from pathlib import Path

from case import CASES, Case

HERE = Path(__file__).resolve().parent
PARTS = ("threads", "published", "generated", "healthy")


SEED, COUNT = 17, 528
HEALTHY = 96
"""How many generated cases also run without their fatal level."""


def load(parts: tuple[str, ...] = PARTS, seed: int = SEED, count: int = COUNT) -> dict[str, Case]:
    """The cases of these parts, by name; `seed` and `count` are those of the generated ones."""
    for part in parts:
        for path in sorted((HERE / part).glob("*.py")):
            importlib.import_module(f"{part}.{path.stem}")
    cases = {name: case for name, case in CASES.items() if case.part in parts}
    if "generated" in parts:
        from generated.generator import generate

        cases |= generate(seed, count)
    if "healthy" in parts:
        from generated.generator import generate_healthy

        cases |= generate_healthy(seed + 1000, min(count, HEALTHY))
    return cases


SAMPLE = 60
"""How many cases of each part a sample holds."""


def sample(cases: list[Case], size: int) -> list[Case]:
    """About `size` cases of each part, evenly spread over their order."""
    chosen = []
    for part in PARTS:
        members = [case for case in cases if case.part == part]
        step = max(1, len(members) // size) if size else 1
        chosen += members[::step][: size + 1]
    return chosen
