"""Collects every case: the published patterns, the threads, the generated and the healthy ones."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

from case import CASES, Case

HERE = Path(__file__).resolve().parent
PARTS = ("threads", "published", "generated", "healthy")


SEED, COUNT = 17, 532
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
    """At most `size` cases of each part, the same ones every time."""
    chosen = []
    for part in PARTS:
        members = [case for case in cases if case.part == part]
        chosen += random.Random(SEED).sample(members, min(size, len(members)))
    return chosen
