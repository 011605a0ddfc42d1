"""Reads and writes the records of bench/early_warning.py: one compact file for all cells.

Magnitudes are kept as log2 in steps of 1/32 (2 %), other numbers with three significant digits. Detectors see the
numbers as they are kept, so that the committed file gives the committed table.
"""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

PER_BIT = 32
ZERO = -10_000
"""The code of a magnitude of 0."""


@dataclass(frozen=True)
class Cell:
    """One training run, with the steps that a detector may see: all before the onset."""

    kind: str
    overrides: str
    onset: int | None
    clock: str | None
    adapter: str
    """The dtype of the trained parameters; the smallest range, if there are several."""
    loss: list[float]
    grad_norm: list[float]
    max_gradient: list[float]
    dtypes: dict[str, str]
    """Dtype of each module's output."""
    largest: dict[str, list[float]]
    """Largest magnitude of each module's output."""
    kurtosis: dict[str, list[float]]
    """Of each decoder layer's output, and of the module that trainscope reads."""


def pack(cells: Iterable[dict[str, Any]], path: Path) -> None:
    """Write the cells, sorted by kind and overrides."""
    kept = sorted((_kept(cell) for cell in cells), key=lambda cell: (cell["kind"], cell["overrides"]))
    lines = (json.dumps(cell, separators=(",", ":")) for cell in kept)
    path.write_bytes(lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME))


def unpack(path: Path) -> Iterator[Cell]:
    """Read the cells."""
    for line in lzma.decompress(path.read_bytes()).splitlines():
        cell = json.loads(line)
        cell["largest"] = {
            module: [2 ** (code / PER_BIT) if code != ZERO else 0.0 for code in accumulate(codes)]
            for module, codes in cell["largest"].items()
        }
        yield Cell(**cell)


def _kept(cell: dict[str, Any]) -> dict[str, Any]:
    seen = len(cell["loss"]) if cell["onset"] is None else cell["onset"]
    scalars = {key: _rounded(cell[key][:seen]) for key in ("loss", "grad_norm", "max_gradient")}
    kurtosis = {module: _rounded(values[:seen]) for module, values in cell["kurtosis"].items()}
    largest = {module: _differences(values[:seen]) for module, values in cell["largest"].items()}
    return cell | scalars | {"kurtosis": kurtosis, "largest": largest}


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.3g}") for value in values]


def _differences(values: Sequence[float]) -> list[int]:
    """The codes of the magnitudes, each as its difference to the one before, which compresses well."""
    codes = [round(PER_BIT * math.log2(value)) if value else ZERO for value in values]
    return [code - before for before, code in zip([0, *codes], codes, strict=False)]
