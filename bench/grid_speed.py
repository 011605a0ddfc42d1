"""How long does a grid take, beside the sum of its steps and beside Hydra's own launcher?

    python bench/grid_speed.py

The default grid (12 cells of the real Gemma 3 270M, two side by side, W&B offline) against the bound
1.25 x (step seconds / 2) + 4 s a cell; and against `hydra -m` with the basic launcher on the same cells: one process
with both threads, cell after cell, no early stop. Interleaved A B A; the caches are warm.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "grid_speed.md"
GRID = "+experiment=default"
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1"}


def timed(arguments: list[str]) -> float:
    began = time.monotonic()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.monotonic() - began


def default_grid(out: Path) -> dict[str, float]:
    from nangrid.records.grid import GridDirectory
    from nangrid.records.history import read_table

    wall = timed(["-m", "src.run", "-m", GRID, "hydra.launcher.n_jobs=2", f"out={out}"])
    grid = GridDirectory.open(out)
    steps = sum(sum(read_table(cell)["seconds"].to_pylist()) for cell in grid.cells())
    cells = len(grid.cells())
    return {"wall": wall, "steps": steps, "cells": cells, "bound": 1.25 * steps / 2 + 4 * cells}


def basic_launcher(arguments: list[str]) -> None:
    """What a user without nangrid's launcher would run: Hydra's multirun, one process, to the horizon."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import DictConfig

    from nangrid.cell.config import CONF_DIR, Config
    from nangrid.cell.identity import cell_id
    from nangrid.cell.levels import as_config
    from nangrid.cell.run import run_cell
    from nangrid.grid.plan import plain_config
    from nangrid.watch import Clocks

    Clocks.done = property(lambda clocks: False)  # type: ignore[assignment]

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
    def train(composed: DictConfig) -> None:
        config: Any = as_config(plain_config(composed))
        directory = Path(config.out) / cell_id(config)
        directory.mkdir(parents=True)
        run_cell(config, directory, cell_id=directory.name, grid_id="basic", overrides=[])

    ConfigStore.instance().store(name="schema", node=Config)
    sys.argv = [sys.argv[0], "-m", "hydra/launcher=basic", "hydra/sweeper=basic", "threads=2", *arguments]
    train()


def main() -> None:
    import torch

    with tempfile.TemporaryDirectory() as scratch:
        first = default_grid(Path(scratch) / "first")
        print(first, flush=True)
        basic = timed([__file__, "basic", GRID, f"out={scratch}/basic"])
        print(basic, flush=True)
        second = default_grid(Path(scratch) / "second")
    both = (first, second)
    walls = ", ".join(f"{grid['wall']:.0f}" for grid in both)
    ratio = basic / median(grid["wall"] for grid in both)
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    lines = [
        "`python bench/grid_speed.py`",
        "",
        "| what | measured | bound |",
        "| --- | ---: | ---: |",
        f"| default grid, {first['cells']:.0f} cells, 2 side by side, wall s | {walls} | {first['bound']:.0f} |",
        f"| ... sum of its cells' step seconds | {first['steps']:.0f}, {second['steps']:.0f} | |",
        f"| the same cells by Hydra's basic launcher, no early stop, wall s | {basic:.0f} | |",
        f"| ... ratio to the median of the two | {ratio:.1f} | at least 2 |",
        "",
        f"{machine}; torch {torch.__version__}",
        "",
    ]
    text = "\n".join(lines)
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["basic"]:
        basic_launcher(sys.argv[2:])
    else:
        main()
