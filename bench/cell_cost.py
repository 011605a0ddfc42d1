"""Measures what a cell of the real Gemma costs: start-up, step ratios, memory, the calls of the watch.

    python bench/cell_cost.py

Each figure is CPU time, or a ratio of medians of steps interleaved A B A B in one process.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RESULT = Path(__file__).parent / "results" / "cell_cost.md"
STEPS = 5


def help_seconds() -> tuple[float, bool]:
    """CPU seconds of `python -m src.run --help`, and whether it imported torch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "src.run", "--help"], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, any(line.endswith(" torch") for line in shown.stderr.splitlines())


def build(overrides: list[str], directory: str) -> Any:
    """A cell ready to train, its trainer prepared, and the CPU seconds that took."""
    from nangrid.cell.build import build_cell
    from nangrid.cell.levels import as_config
    from nangrid.commands.compose import composed

    config = as_config(composed(overrides))
    began = time.process_time()
    cell = build_cell(config, Path(directory))
    return cell, time.process_time() - began


def step_times(overrides: list[str]) -> dict[str, Any]:
    """CPU seconds of set-up, of a median step and of the watch in it, and peak memory, over STEPS steps of a cell."""
    from nangrid.integrations import watch_trainer
    from nangrid.watch import Clocks
    from nangrid.watch.inspector import Inspector

    inside = [0.0]

    def timed(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                inside[0] += time.process_time() - began

        return call

    for name in ("begin", "micro_batch", "loss", "gradients", "norm", "updated"):
        setattr(Inspector, name, timed(getattr(Inspector, name)))
    Clocks.done = property(lambda clocks: False)  # type: ignore[assignment]  # fp16 fails at once: time it all the same
    with TemporaryDirectory() as directory:
        cell, setup = build([*overrides, f"horizon={STEPS}"], directory)
        times = [time.process_time()]
        watch_trainer(cell.trainer, None, on_step=lambda reading: times.append(time.process_time()))
        cell.trainer.train()
    steps = [b - a for a, b in pairwise(times[1:])]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"setup": setup, "step": statistics.median(steps), "watch": inside[0] / STEPS, "peak_gib": peak}


def in_process(overrides: list[str]) -> dict[str, Any]:
    """`step_times` in a fresh process, with its CPU time from the start of the process to step 0."""
    script = (
        "import sys, time, json; sys.path.insert(0, 'bench'); import cell_cost; "
        "import nangrid.cell.run, nangrid.commands.compose; imports = time.process_time(); "
        "measured = cell_cost.step_times(sys.argv[1:]); print(json.dumps(measured | {'imports': imports}))"
    )
    shown = subprocess.run([sys.executable, "-c", script, *overrides], capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(shown.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Measure, print, and write the table."""
    import torch
    import transformers

    help_s, help_torch = help_seconds()
    levels = {"fp32": "dtype=fp32", "bf16": "dtype=bf16", "fp16": "dtype=fp16"}
    cells: dict[str, list[dict[str, Any]]] = {level: [] for level in levels}
    for _ in range(2):
        for level, override in levels.items():
            cells[level].append(in_process([override]))
    step = {level: statistics.median(c["step"] for c in runs) for level, runs in cells.items()}
    bf16 = cells["bf16"][0]
    peak = max(c["peak_gib"] for runs in cells.values() for c in runs)
    rows = [
        ("`python -m src.run --help`, CPU s", f"{help_s:.2f}", "1.0"),
        ("... imports torch", str(help_torch), "False"),
        ("CPU s of a cell to step 0 (imports preloaded by the fork server)", f"{bf16['setup']:.1f}", "6"),
        ("imports, CPU s, once per grid", f"{bf16['imports']:.1f}", ""),
        ("fp32 step, CPU s, 1 thread", f"{step['fp32']:.2f}", ""),
        ("bf16 step / fp32 step", f"{step['bf16'] / step['fp32']:.2f}", ""),
        ("fp16 step / fp32 step", f"{step['fp16'] / step['fp32']:.2f}", "1.6"),
        ("calls of the watch / bf16 step, %", f"{100 * bf16['watch'] / step['bf16']:.2f}", "1"),
        ("peak memory of a cell, GiB", f"{peak:.2f}", "6"),
    ]
    lines = ["| what | measured | at most |", "| --- | --- | --- |", *(f"| {a} | {b} | {c} |" for a, b, c in rows)]
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    text = "\n".join(["`python bench/cell_cost.py`", "", *lines, "", f"{machine}; {versions}", ""])
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
