"""Measures what offline W&B costs a cell: per step, to open the run, and to finish it.

    python bench/wandb_cost.py

Prints a table and writes it to bench/results/wandb_cost.md. It counts the time inside run.log, which is
what a step waits for, and the CPU time of the cell's process and of W&B's service. Steps do nothing here, so
shares refer to a step of the real Gemma 3 270M (bench/cell_cost.py).
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil

from nangrid.records.cell import CLOCKS, CellRecord, Seconds, Trains
from nangrid.tracking import Run, open_run

REAL_STEP_S = 1.5
"""A bf16 step on two threads; most cells' steps take longer, so the shares are upper bounds."""

STEPS = 200
PACE_S = 0.1
RESULT = Path(__file__).parent / "results" / "wandb_cost.md"

os.environ.update(WANDB_BASE_URL="http://127.0.0.1:9")


def row(step: int) -> dict[str, object]:
    numbers = dict.fromkeys(("loss", "grad_norm", "lr", "max_gradient", "max_update"), 1.0 / (step + 1))
    return {"step": step, **numbers, "eval_loss": None, **{f"nonfinite_{clock}": 0 for clock in CLOCKS}}


def record() -> CellRecord:
    return CellRecord(
        cell_id="cell",
        grid_id="grid",
        overrides=[],
        factors={},
        status="finite",
        horizon=STEPS,
        steps_done=STEPS,
        censored=True,
        onset=None,
        clocks=dict.fromkeys(CLOCKS),
        trains=Trains(None, [], 1e-3, 4.0, 3.0),
        ledger={f"key{i}": "bf16" for i in range(40)},
        environment={},
        autopsy=None,
        snapshot=None,
        seconds=Seconds(4.0, 20.0, 0.0),
        peak_rss_bytes=0,
        error=None,
    )


def cpu_seconds() -> float:
    """CPU seconds of this process and of W&B's service."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def open_cell(directory: Path) -> Run:
    config = {f"factor{i}": "level" for i in range(60)}
    names = {"cell_id": "cell", "grid_id": "grid"}
    return open_run(
        name="wandb", mode="offline", project="bench", entity=None, directory=directory, config=config, **names
    )


def measure(directory: Path) -> dict[str, float]:
    import wandb.sdk.launch  # noqa: F401  (imported once per grid, by the fork server)

    began, cpu = time.perf_counter(), cpu_seconds()
    run = open_cell(directory)
    opened = time.perf_counter() - began
    time.sleep(3)  # a cell takes as long to be built
    opening_cpu, cpu = cpu_seconds() - cpu, cpu_seconds()
    inside: list[float] = []
    for step in range(STEPS):
        before = time.perf_counter()
        run.log(step, row(step))
        inside.append(time.perf_counter() - before)
        time.sleep(PACE_S)
    logging_cpu = cpu_seconds() - cpu
    before = time.perf_counter()
    run.finish(record())
    finished = time.perf_counter() - before
    return {
        "opened": opened,
        "opening_cpu": opening_cpu,
        "inside": median(inside),
        "worst": max(inside),
        "step_cpu": logging_cpu / STEPS,
        "finished": finished,
    }


def table(cost: dict[str, float]) -> str:
    share = {key: 100 * cost[key] / REAL_STEP_S for key in ("inside", "step_cpu")}
    rows = [
        f"| run.log, median, ms per step | {1e3 * cost['inside']:.3f} | {share['inside']:.4f} | 1 |",
        f"| run.log, slowest of {STEPS}, ms | {1e3 * cost['worst']:.3f} | | |",
        f"| CPU of cell and W&B's service, ms per step | {1e3 * cost['step_cpu']:.2f} | {share['step_cpu']:.2f} | 1 |",
        f"| open, s the cell waits | {cost['opened']:.3f} | | |",
        f"| open, CPU s while the cell is built | {cost['opening_cpu']:.2f} | | |",
        f"| finish, s, after the record is written | {cost['finished']:.2f} | | |",
    ]
    head = [f"| what | measured | % of a step of {REAL_STEP_S} s | at most |", "| --- | ---: | ---: | ---: |"]
    versions = f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, "
    return "\n".join(
        ["`python bench/wandb_cost.py`", "", *head, *rows, "", f"{versions}wandb {version('wandb')}, offline", ""]
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        text = table(measure(Path(scratch)))
    RESULT.write_text(text)
    print(text)
