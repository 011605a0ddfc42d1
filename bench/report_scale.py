"""Measures what the report of a thousand cells costs.

    python bench/report_scale.py

It writes cells as a real grid does (records, histories of 32 steps, autopsies of failing cells) over six factors and
three seeds, then runs `src.report` on them in another process, without and with the executed notebook.
"""

from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from nangrid.records.autopsy import Autopsy, TensorRecord, write_autopsy
from nangrid.records.cell import CLOCKS, CellRecord, Onset, Seconds, Trains, write_record
from nangrid.records.grid import GridDirectory
from nangrid.records.history import write_history

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "report_scale.md"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src")}
LEVELS = {
    "dtype": ("bf16", "fp16", "fp32", "silent_fp16", "amp_bf16"),
    "init": ("zero", "mean", "normal"),
    "optim": ("paged_adamw_8bit", "adamw_torch"),
    "upcast": ("none", "trainable"),
    "checkpointing": ("on", "off"),
    "quant": ("nf4", "none", "int8"),
    "seed": (0, 1, 2),
}
HORIZON = 32
BOUND_S = 10


def mechanism(factors: dict[str, Any]) -> str | None:
    if factors["dtype"] == "fp16":
        return "fp16-activation-overflow"
    if factors["dtype"] == "silent_fp16" and factors["init"] == "zero":
        return "fp16-gradient-overflow"
    eps = factors["dtype"] == "silent_fp16" and factors["optim"] == "adamw_torch" and factors["upcast"] == "none"
    return "adam-eps-underflow" if eps else None


def autopsy(met: str, step: int) -> Autopsy:
    operand = TensorRecord("self", [2, 64, 640], "float16", 5.4e4, 0, 0)
    return Autopsy(
        step, "loss", "forward", "overflow", "aten.add.Tensor", "model.layers.7", "modeling_gemma3.py:416", "", 0,
        "float16", 65504.0, [operand], None, ["aten.add.Tensor"], [], [], met, "", [], [], True, True,
    )  # fmt: skip


def write_cell(grid: GridDirectory, number: int, factors: dict[str, Any], rng: random.Random) -> None:
    met = mechanism(factors)
    step = rng.randint(0, 4) if met else None
    clocks: dict[str, int | None] = dict.fromkeys(CLOCKS) | ({"loss": step} if met else {})
    steps = HORIZON if step is None else step + 1
    cell_id = f"{number:012x}"
    directory = grid.cell(cell_id)
    directory.mkdir(parents=True)
    overrides = [f"{factor}={level}" for factor, level in factors.items()]
    record = CellRecord(
        cell_id, grid.grid_id, overrides, factors, "nonfinite" if met else "finite", HORIZON, steps, met is None,
        None if step is None else Onset(step, "loss"), clocks, Trains(None, [], 1e-3, 4.0, 3.0 + rng.random() / 10),
        {"storage": factors["dtype"], "layers": 18}, {"torch": "2.13.0"}, "autopsy.json" if met else None, None,
        Seconds(4.0, 50.0, 0.0), 2**31, None,
    )  # fmt: skip
    rows = [{"step": s, "loss": 4 - s / 40 + rng.random() / 10, "grad_norm": 40 * rng.random()} for s in range(steps)]
    write_history(directory, rows)
    if met and step is not None:
        write_autopsy(directory, autopsy(met, step))
    write_record(directory, record)


def timed(*arguments: str) -> float:
    began = time.monotonic()
    command = [sys.executable, "-m", "src.report", *arguments]
    subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def main() -> None:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        grid = GridDirectory.open(Path(scratch) / "grid")
        combinations = list(product(*LEVELS.values()))
        for number, levels in enumerate(combinations):
            write_cell(grid, number, dict(zip(LEVELS, levels, strict=True)), rng)
        page, everything = timed(str(grid.path), "--no-notebook"), timed(str(grid.path))
        size = (grid.path / "report.html").stat().st_size / 2**20
    lines = [
        f"`python bench/report_scale.py` on {platform.processor() or platform.machine()}, {os.cpu_count()} cores:",
        f"{len(combinations)} cells of {HORIZON} steps over {len(LEVELS) - 1} factors, 3 seeds.",
        "",
        "| what | measured | at most |",
        "| --- | ---: | ---: |",
        f"| analysis, verdict and page ({size:.1f} MiB), s | {page:.1f} | {BOUND_S} |",
        f"| the same with the executed notebook, s | {everything:.1f} | |",
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
