"""Measures what the ways to watch a loop cost: by batches or closures, full or light, alone or on two gloo ranks.

    python bench/watch_loops.py

A small Transformer is trained in float32, four steps per variant in turn, so that all variants meet the same load:
medians of paired ratios to the plain loop, with the smallest and largest; of CPU time, and on two ranks of wall time.
Memory: the peak of a process that trains 100 million parameters with AdamW.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT"}

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nangrid import Watch

RESULT = Path(__file__).parent / "results" / "watch_loops.md"
ROUNDS, STEPS = 12, 4
WIDTH, LAYERS, TOKENS = 256, 4, 1024
VARIANTS = ("plain", "closure full", "closure light", "batches full", "batches light")
OF_RANKS = ("plain", "batches full", "batches light")
MEMORY = ("plain", "light", "full")


def transformer() -> nn.Module:
    """3.2 million parameters."""
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False), nn.Linear(WIDTH, 1))


def trained(batches: Iterable[Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for batch in batches:
        optimizer.zero_grad()
        loss = model(batch).pow(2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def trained_by_closures(batches: Iterable[Tensor], model: nn.Module, watch: Watch) -> None:
    def closure(batch: Tensor) -> Tensor:
        loss: Tensor = model(batch).pow(2).mean()
        loss.backward()
        return loss

    for batch in batches:
        watch.step(closure, batch)


def runner(variant: str, folder: Path, ranks: bool) -> Callable[[list[Tensor]], None]:
    """What trains on some batches by one variant, each with its own model."""
    torch.manual_seed(0)
    model = DistributedDataParallel(transformer()) if ranks else transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if variant == "plain":
        return lambda batches: trained(batches, model, optimizer)
    how, snapshot = variant.split()
    watch = Watch(model, optimizer, folder / variant, snapshot=snapshot, max_grad_norm=1.0)
    if how == "closure":
        return lambda batches: trained_by_closures(batches, model, watch)
    return lambda batches: trained(watch.batches(batches), model, optimizer)


def seconds_of(variants: tuple[str, ...], clock: Callable[[], float], ranks: bool = False) -> dict[str, list[float]]:
    """Seconds of each round of each variant."""
    with TemporaryDirectory() as folder:
        runs = {variant: runner(variant, Path(folder), ranks) for variant in variants}
        found: dict[str, list[float]] = {variant: [] for variant in variants}
        for turn in range(ROUNDS + 1):
            batches = [torch.randn(TOKENS // 128, 128, WIDTH) for _ in range(STEPS)]
            # Each is first as often as the others: the first of a round meets a cold cache.
            for variant in (*variants[turn % len(variants) :], *variants[: turn % len(variants)]):
                if ranks:
                    dist.barrier()
                began = clock()
                runs[variant](batches)
                if turn:  # the first round warms up
                    found[variant].append(clock() - began)
    return found


def on_two_ranks() -> dict[str, list[float]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, __file__, "rank"]
    ranks = [
        subprocess.Popen(command, env=os.environ | address | {"RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in "01"
    ]
    outputs = [process.communicate()[0] for process in ranks]
    return last_line(outputs[0])


def rank() -> dict[str, list[float]]:
    dist.init_process_group("gloo")
    return seconds_of(OF_RANKS, time.perf_counter, ranks=True)


def peak_bytes(snapshot: str) -> int:
    """Peak of this process after three steps of 100 million parameters."""
    model = nn.Sequential(*chain.from_iterable((nn.Linear(2900, 2900), nn.Tanh()) for _ in range(12)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batches: Iterable[Tensor] = [torch.randn(64, 2900) for _ in range(3)]
    with TemporaryDirectory() as folder:
        watched = snapshot != "plain"
        trained(
            Watch(model, optimizer, folder, snapshot=snapshot).batches(batches) if watched else batches,
            model,
            optimizer,
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def last_line(output: str) -> Any:
    return json.loads(output.splitlines()[-1])


def in_a_process(*arguments: str) -> Any:
    return last_line(
        subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True).stdout
    )


def ratios(found: dict[str, list[float]], variant: str, to: str = "plain") -> str:
    ordered = sorted(a / b for a, b in zip(found[variant], found[to], strict=True))
    return f"{median(ordered):.3f} ({ordered[0]:.3f} to {ordered[-1]:.3f})"


def table(alone: dict[str, list[float]], ranks: dict[str, list[float]], peaks: dict[str, int]) -> list[str]:
    lines = ["| a step relative to the plain loop | one process, CPU time | two gloo ranks, wall time |"]
    lines.append("| --- | ---: | ---: |")
    for variant in VARIANTS[1:]:
        lines.append(f"| {variant} | {ratios(alone, variant)} | {ratios(ranks, variant) if variant in ranks else ''} |")
    for snapshot in ("full", "light"):
        between = ratios(alone, f"batches {snapshot}", f"closure {snapshot}")
        lines.append(f"| batches relative to closure, {snapshot} | {between} | |")
    plain = [f"{median(found['plain']) / STEPS:.3f} s" for found in (alone, ranks)]
    lines += [f"| (plain step) | {' | '.join(plain)} |", ""]
    lines += ["| 100 million parameters, AdamW | peak | relative to plain | at most |", "| --- | ---: | ---: | ---: |"]
    for name, peak in peaks.items():
        bound = "1.02" if name == "light" else ""
        lines.append(f"| {name} | {peak / 2**30:.2f} GiB | {peak / peaks['plain']:.3f} | {bound} |")
    return lines


def main() -> None:
    load = os.getloadavg()[0]
    alone = in_a_process("alone")
    ranks = on_two_ranks()
    peaks = {snapshot: in_a_process("memory", snapshot) for snapshot in MEMORY}
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    measured = f"{TOKENS} tokens per step; load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    tail = f"{machine}; torch {torch.__version__}; {measured}"
    text = "\n".join(["`python bench/watch_loops.py`", "", *table(alone, ranks, peaks), "", tail, ""])
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    if sys.argv[1:] == ["alone"]:
        print(json.dumps(seconds_of(VARIANTS, time.process_time)))
    elif sys.argv[1:] == ["rank"]:
        print(json.dumps(rank()))
    elif sys.argv[1:2] == ["memory"]:
        print(json.dumps(peak_bytes(sys.argv[2])))
    else:
        main()
