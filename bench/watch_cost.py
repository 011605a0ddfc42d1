"""Measures what the watch costs per step, compared with the usual tools, and how the cost grows with the model.

    python bench/watch_cost.py

CPU time of whole optimizer steps of the real Gemma 3 270M and of the tiny one (bf16), all variants interleaved
in one process: medians of paired ratios to the plain step with 90 % intervals. Also the time inside the watch's calls,
including the copy for the snapshot, inside headroom's calls on a sampled step, and of the preflight, once per run.
Growth: the watch's calls on bare LoRA-like layers.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT"}
RESULT = Path(__file__).parent / "results" / "watch_cost.md"
ROUNDS = {"gemma3-270m": 9, "tiny": 25}
REPLAYS = 3
SAMPLE_EVERY, RUN = 10, 200
"""Steps between two headroom samples, and steps per run."""
VARIANTS = ("plain", "watch", "light", "headroom", "set_detect_anomaly", "DebugUnderflowOverflow")


def measure(model: str) -> dict[str, Any]:
    """Seconds per step of every variant, inside the watch and headroom, and of replays."""
    from nangrid.cell.levels import as_config
    from nangrid.cell.replay import at_train_begin
    from nangrid.commands.compose import composed

    config = as_config(composed([f"model={model}", "dtype=bf16", "init=mean"]))
    return at_train_begin(config, lambda cell, step: Comparison(cell, config, step).run(ROUNDS[model]))


class Comparison:
    """Variants of one step, taken in turn on the same trainer."""

    def __init__(self, cell: Any, config: Any, step: Any) -> None:
        from nangrid.cell.build import check_cell
        from nangrid.watch import Headroom
        from nangrid.watch.autopsy.examine import Background
        from nangrid.watch.inspector import Inspector
        from nangrid.watch.state.recorder import SnapshotPolicy

        class Timed(Headroom):
            spent = 0.0

            def _note(self, name: str, kind: str, value: Any) -> None:
                began = time.process_time()
                super()._note(name, kind, value)
                self.spent += time.process_time() - began

        began = time.process_time()
        check_cell(cell, config, trial=False)
        self.preflight = time.process_time() - began
        self.headroom = Timed(cell.model)
        self.step = step
        self.trainer = cell.trainer
        self.trainer.current_gradient_accumulation_steps = 1
        self.batches = iter(self.trainer.get_train_dataloader())
        self.inspector = self.full = Inspector(step, None, Background())
        self.light = Inspector(step, None, Background(), SnapshotPolicy(light=True))
        self.inside = 0.0
        self.number = 0

    def run(self, rounds: int) -> dict[str, Any]:
        steps: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        inside: dict[str, list[float]] = {"watch": [], "light": []}
        sampling: list[float] = []
        for turn in range(rounds + 1):
            batch = next(self.batches)
            for variant in VARIANTS:
                began = time.process_time()
                getattr(self, f"_{variant}")(batch)
                if turn:  # the first round warms up
                    steps[variant].append(time.process_time() - began)
                    if variant in inside:
                        inside[variant].append(self.inside)
                    sampling += [self.headroom.spent] if variant == "headroom" else []
        seconds = {"inside": inside, "headroom": sampling, "replays": self._replays(), "preflight": [self.preflight]}
        return {"steps": steps, **seconds}

    def _plain(self, batch: Any, watched: bool = False) -> None:
        from nangrid.watch.state.snapshot import MicroBatch

        watch: Callable[..., None] = self._timed if watched else lambda *_: None
        watch("begin", self.number)
        watch("micro_batch", batch)
        loss = self.step.forward_backward(MicroBatch(batch, {"num_items_in_batch": None}))
        watch("loss", loss)
        watch("gradients")
        norm = self.step.clip()
        watch("norm", norm)
        self.step.update()
        watch("updated")
        self.trainer.optimizer.zero_grad()
        self.number += 1

    def _timed(self, name: str, *arguments: Any) -> None:
        began = time.process_time()
        getattr(self.inspector, name)(*arguments)
        self.inside += time.process_time() - began

    def _watch(self, batch: Any) -> None:
        self.inside, self.inspector = 0.0, self.full
        self._plain(batch, watched=True)

    def _light(self, batch: Any) -> None:
        self.inside, self.inspector = 0.0, self.light
        self._plain(batch, watched=True)

    def _headroom(self, batch: Any) -> None:
        began = time.process_time()
        self.headroom.begin(0)
        attaching = time.process_time() - began
        self.headroom.spent = 0.0
        self._plain(batch)
        began = time.process_time()
        self.headroom.end(0)
        self.headroom.spent += attaching + time.process_time() - began

    def _set_detect_anomaly(self, batch: Any) -> None:
        import torch

        with torch.autograd.set_detect_anomaly(True):
            self._plain(batch)

    def _DebugUnderflowOverflow(self, batch: Any) -> None:
        from transformers.debug_utils import DebugUnderflowOverflow

        before = {module: dict(module._forward_hooks) for module in self.step.model.modules()}
        DebugUnderflowOverflow(self.step.model)
        self._plain(batch)
        for module, hooks in before.items():
            module._forward_hooks.clear()
            module._forward_hooks.update(hooks)

    def _replays(self) -> list[float]:
        from nangrid.watch.autopsy.replay import replay
        from nangrid.watch.state.snapshot import MicroBatch

        batch, self.inspector = next(self.batches), self.full
        self.inspector.begin(self.number)
        self.inspector.micro_batch(batch, num_items_in_batch=None)
        snapshot = self.inspector.recorder.snapshot("loss", {}, [])
        assert isinstance(snapshot.micro_batches[0], MicroBatch)
        seconds = []
        for _ in range(REPLAYS):
            began = time.process_time()
            replayed = replay(self.step, snapshot)
            seconds.append(time.process_time() - began)
            assert replayed.clock is None
        return seconds


def growth() -> list[tuple[str, int, int, float]]:
    """What varied, trainables, frozen weights and milliseconds per step inside the watch."""
    rows = [("layers", layers, 16, 256) for layers in (4, 8, 16, 32)]
    rows += [("rank", 8, rank, 256) for rank in (4, 16, 64, 256)]
    rows += [("frozen width", 8, 16, width) for width in (256, 512, 1024, 2048)]
    return [(name, *watched_milliseconds(layers, rank, width)) for name, layers, rank, width in rows]


def watched_milliseconds(layers: int, rank: int, width: int) -> tuple[int, int, float]:
    import torch
    from torch import nn

    from nangrid.watch.autopsy.examine import Background
    from nangrid.watch.inspector import Inspector
    from nangrid.watch.state.tensors import trainables

    narrow = 256
    frozen = nn.ModuleList(nn.Linear(width, width) for _ in range(layers)).requires_grad_(False)
    adapters = nn.ModuleList(
        nn.ModuleList([nn.Linear(narrow, rank, bias=False), nn.Linear(rank, narrow, bias=False)]) for _ in range(layers)
    )
    model = nn.ModuleList([frozen, adapters])
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-4)
    for parameter in adapters.parameters():
        parameter.grad = torch.randn_like(parameter)

    class Step:
        scaler = None

        def __init__(self) -> None:
            self.model, self.optimizer, self.trainables = model, optimizer, trainables(model)

    inspector = Inspector(Step(), None, Background())  # type: ignore[arg-type]
    seconds = []
    for number in range(30):
        began = time.process_time()
        inspector.begin(number)
        inspector.micro_batch({})
        inspector.loss(torch.ones(()))
        inspector.gradients()
        inspector.norm(1.0)
        spent = time.process_time() - began
        optimizer.step()
        began = time.process_time()
        inspector.updated()
        seconds.append(spent + time.process_time() - began)
    count = sum(p.numel() for p in adapters.parameters())
    return count, sum(p.numel() for p in frozen.parameters()), 1e3 * median(seconds[5:])


def interval(values: list[float]) -> str:
    ordered = sorted(values)
    low, high = ordered[int(0.05 * len(ordered))], ordered[int(0.95 * len(ordered))]
    return f"{median(values):.3f} ({low:.3f} to {high:.3f})"


def cost_table(costs: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"| cost relative to a plain step | {' | '.join(costs)} | at most |", "| --- | ---: | ---: | ---: |"]
    for variant, what, most in (
        ("watch", "the watch, snapshot included", "1 %, tiny 3 %"),
        ("light", "the watch, snapshot=light", "0.5 %"),
    ):
        shares = [median(c["inside"][variant]) / median(c["steps"]["plain"]) for c in costs.values()]
        lines.append(f"| **{what}** | {' | '.join(f'{100 * share:.2f} %' for share in shares)} | {most} |")
    headrooms = [median(c["headroom"]) / median(c["steps"]["plain"]) / SAMPLE_EVERY for c in costs.values()]
    lines.append(
        f"| **headroom, sampled every 10 steps** | {' | '.join(f'{100 * share:.2f} %' for share in headrooms)} | |"
    )
    both = [
        share + median(c["inside"]["watch"]) / median(c["steps"]["plain"])
        for share, c in zip(headrooms, costs.values(), strict=True)
    ]
    once = [c["preflight"][0] / (RUN * median(c["steps"]["plain"])) for c in costs.values()]
    total = [f"{100 * (a + b):.2f} %" for a, b in zip(both, once, strict=True)]
    lines.append(f"| **all three, preflight over {RUN} steps** | {' | '.join(total)} | 1.5 % |")
    for variant in VARIANTS[1:]:
        ratios = [
            [a / b for a, b in zip(cost["steps"][variant], cost["steps"]["plain"], strict=True)]
            for cost in costs.values()
        ]
        lines.append(f"| a step under {variant} | {' | '.join(map(interval, ratios))} | |")
    replays = [f"{median(c['replays']) / median(c['steps']['plain']):.1f}" for c in costs.values()]
    lines.append(f"| replay with full instrumentation | {' | '.join(replays)} | 6 |")
    preflights = [f"{c['preflight'][0]:.2f} s" for c in costs.values()]
    lines.append(f"| (preflight, CPU time, once per run) | {' | '.join(preflights)} | 10 s |")
    plain_steps = [f"{median(c['steps']['plain']):.2f} s" for c in costs.values()]
    lines.append(f"| (plain step, CPU time, 1 thread) | {' | '.join(plain_steps)} | |")
    return lines


def growth_table() -> list[str]:
    lines = [
        "| varied | trainables | frozen weights | watch, ms per step | ns per trainable |",
        "| --- " + "| ---: " * 4 + "|",
    ]
    for name, trainables, frozen, milliseconds in growth():
        each = 1e6 * milliseconds / trainables
        lines.append(f"| {name} | {trainables:,} | {frozen:,} | {milliseconds:.2f} | {each:.1f} |")
    return lines


def main() -> None:
    import torch
    import transformers

    costs = {}
    for model in ROUNDS:
        shown = subprocess.run([sys.executable, __file__, model], capture_output=True, text=True)
        if shown.returncode:
            raise SystemExit(shown.stderr)
        costs[model] = json.loads(shown.stdout.splitlines()[-1])
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    head = ["`python bench/watch_cost.py`", ""]
    text = "\n".join([*head, *cost_table(costs), "", *growth_table(), "", f"{machine}; {versions}", ""])
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
