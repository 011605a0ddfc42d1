"""Measures what watch.batches costs per step, beside the closure API and in its light form.

    python bench/batches_cost.py

CPU time of whole steps of a bare MLP, all variants interleaved in one process, one thread: medians of paired ratios to
the plain step. Two sizes of batch, because the watch's own time does not depend on it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from tempfile import mkdtemp

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import torch
from torch import Tensor, nn

from nangrid import Watch

RESULT = Path(__file__).parent / "results" / "batches_cost.md"
ROUNDS, WIDTH = 9, 768
VARIANTS = ("plain", "closure", "batches", "batches, light")


def steps_of(variant: str, size: int) -> Iterator[None]:
    """A loop that takes one step each time it is resumed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = torch.randn(size, WIDTH)
    data = [batch] * (ROUNDS + 2)
    snapshot = "light" if "light" in variant else "full"
    watch = None if variant == "plain" else Watch(model, optimizer, mkdtemp(), snapshot=snapshot)

    def closure(x: Tensor) -> Tensor:
        loss: Tensor = model(x).pow(2).mean()
        loss.backward()
        return loss

    if watch is not None and variant == "closure":
        for x in data:
            watch.step(closure, x)
            yield
        return
    for x in data if watch is None else watch.batches(data):
        optimizer.zero_grad()
        closure(x)
        optimizer.step()
        yield


def measure(size: int) -> dict[str, float]:
    """The median ratio of each variant's step to the plain one."""
    loops: dict[str, Callable[[], None]] = {name: steps_of(name, size).__next__ for name in VARIANTS}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(ROUNDS + 1):
        for name, resume in loops.items():
            began = time.process_time()
            resume()
            if turn:  # the first round warms up
                seconds[name].append(time.process_time() - began)
    return {n: median(a / b for a, b in zip(seconds[n], seconds["plain"], strict=True)) for n in VARIANTS}


def main() -> None:
    sizes = (64, 1024)
    columns = [measure(size) for size in sizes]
    lines = [
        "`python bench/batches_cost.py`",
        "",
        f"| step relative to a plain one | {' | '.join(f'batch of {s}' for s in sizes)} |",
    ]
    lines.append("| --- " + "| ---: " * len(sizes) + "|")
    lines += [f"| {name} | {' | '.join(f'{column[name]:.3f}' for column in columns)} |" for name in VARIANTS[1:]]
    text = "\n".join(
        [*lines, "", f"1.2 million trainables in float32, AdamW; torch {torch.__version__}, CPU, one thread.", ""]
    )
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
