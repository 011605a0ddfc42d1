"""What does planning a cell cost, and what does a table of ten thousand cells?

    python bench/grid_scale.py

Planning: `dry_run=true` of 100 tiny cells less that of one, a cell. Table: cells as a real grid leaves them
(records, requests, some autopsies), read, checked and written as onsets.parquet and .csv; and `src.status` of them.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "grid_scale.md"
CELLS = 10_000
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1"}
GRID = ["model=tiny", "model.layers=2", "data=glossary", "data.bos=false", "horizon=1", "tracker=none"]


def timed(*arguments: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def planning() -> float:
    """Seconds a cell."""
    seeds = ",".join(map(str, range(50)))
    one = timed("src.run", "-m", *GRID, "dry_run=true", "seed=0")
    many = timed("src.run", "-m", *GRID, "dry_run=true", f"seed={seeds}", "dtype=bf16,fp32")
    return (many - one) / 99


def ten_thousand(out: Path) -> None:
    """Copies of four real cells under names of their own."""
    timed("src.run", "-m", *GRID, "dtype=bf16,fp32", "init=zero,mean", f"out={out}")
    originals = sorted((out / "cells").iterdir())
    for number in range(CELLS - len(originals)):
        original = originals[number % len(originals)]
        copy = out / "cells" / f"{number:012x}"
        copy.mkdir()
        for name in ("result.json", "request.json", "history.parquet", "autopsy.json"):
            if (original / name).exists():
                shutil.copy(original / name, copy / name)
        for name in ("result.json", "request.json"):
            text = (copy / name).read_text().replace(original.name, copy.name)
            (copy / name).write_text(text.replace('"seed": 0', f'"seed": {number}'))


def table(out: Path) -> float:
    from nangrid.analysis.onsets import onset_table, write_onsets
    from nangrid.records.grid import GridDirectory

    began = time.monotonic()
    grid = GridDirectory.open(out)
    records, errors = grid.records()
    assert len(records) == CELLS and not errors
    write_onsets(grid, onset_table(records, grid.autopsies(records)))
    return time.monotonic() - began


def main() -> None:
    a_cell = planning()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "grid"
        ten_thousand(out)
        seconds, status = table(out), timed("src.status", str(out))
    lines = [
        "`python bench/grid_scale.py`",
        "",
        "| what | measured | at most |",
        "| --- | ---: | ---: |",
        f"| planning, s a cell | {a_cell:.3f} | 0.2 |",
        f"| {CELLS:,} cell directories into one table, s | {seconds:.1f} | 20 |",
        f"| `python -m src.status` of them, s | {status:.1f} | |",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}",
        "",
    ]
    text = "\n".join(lines)
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
