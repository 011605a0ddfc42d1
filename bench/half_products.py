"""Measures half-precision products on this CPU, torch's own and the emulated ones, against float32.

    python bench/half_products.py

Prints a table and writes it to bench/results/half_products.md. Interleaved medians on one thread.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from nangrid.cell.model.arithmetic import install

ROWS, INNER, COLUMNS = 128, 640, 2048
ROUNDS = 7
RESULT = Path(__file__).parent / "results" / "half_products.md"


def seconds(product: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    product()
    return time.perf_counter() - start


def candidates() -> dict[tuple[str, str, str], Callable[[], Tensor]]:
    """Products by dtype, maker and layout of the right operand; `out=` bypasses the emulation."""
    products: dict[tuple[str, str, str], Callable[[], Tensor]] = {}
    for name, dtype in {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.items():
        left = torch.randn(ROWS, INNER).to(dtype)
        right = torch.randn(INNER, COLUMNS).to(dtype)
        for layout, operand in {"x @ w": right, "x @ w.T": right.T.contiguous().T}.items():
            out = torch.empty(ROWS, COLUMNS, dtype=dtype)
            products[name, "torch", layout] = partial(torch.mm, left, operand, out=out)
            if name != "fp32":
                products[name, "nangrid", layout] = partial(torch.mm, left, operand)
    return products


def table() -> str:
    arithmetic = install()
    products = candidates()
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in products}
    for _ in range(ROUNDS + 1):
        for key, product in products.items():
            times[key].append(seconds(product))
    medians = {key: median(measured[1:]) for key, measured in times.items()}
    rows = [
        f"| {dtype} | {who} | {layout} | {1e3 * took:.2f} | {took / medians['fp32', 'torch', layout]:.2f} |"
        for (dtype, who, layout), took in medians.items()
    ]
    title = f"{ROWS} x {INNER} by {INNER} x {COLUMNS}, one thread, median of {ROUNDS} interleaved rounds."
    head = ["| dtype | made by | layout | ms | against fp32 |", "| --- | --- | --- | ---: | ---: |"]
    return "\n".join(["# Half products", "", title, machine(), f"{arithmetic}.", "", *head, *rows, ""])


def machine() -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in cpu_lines() if line.startswith("model name")),
        platform.machine(),
    )
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu} ({capability}), Python {platform.python_version()}, torch {torch.__version__}."


def cpu_lines() -> list[str]:
    listing = Path("/proc/cpuinfo")
    return listing.read_text().splitlines() if listing.exists() else []


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text = table()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text)
    print(text)
