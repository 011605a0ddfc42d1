"""Trains the cells of bench/early_warning.py and records, per step, every number that a detector reads.

Late failures of the real model are of two kinds. `arrives`: a batch whose prompt leaves no room for a label makes the
loss NaN, or a batch with a new token, whose embedding row is zero, raises the fp16 gradient a hundredfold. The seeds
are those whose order of the data brings the first such batch after step 50: chosen by the order alone, before training.
`builds up`: the warm-up raises the learning rate, the adapter's weights grow, and its fp16 output overflows.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterator
from itertools import count, islice, product
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from trainscope.core.metrics import compute_activation_metrics

SMALL = "quant=none checkpointing=off data.batch=1 data.length=16 dtype=fp32"
ZERO_ROWS = f"{SMALL} dtype.adapter=fp16 vocab.size=8 init=zero targets.rank=4 targets.alpha=256 horizon=80"
NO_LABELS = f"{SMALL} targets=qv vocab=none data=jsonl data.labels=completion data.packing=false horizon=90"
WARM_UP = f"{SMALL} targets=qv vocab=none targets.rank=8 targets.alpha=32 optim.warmup=100 horizon=110"
EARLIEST, LATEST = 51, 60
"""Steps between which the first such batch arrives: after the first steps that every detector needs."""
TINY = "model=tiny model.layers=2 quant=none checkpointing=off data.length=16 horizon=100"
TINY_DTYPES = ("bf16", "fp32", "amp_bf16", "silent_fp16 init=mean", "fp16 init=mean")
RATES = ("2e-4", "1e-3", "5e-3", "2e-2")
SAMPLES, LONG_EVERY = 2000, 67


def cells(folder: Path) -> Iterator[tuple[str, str]]:
    """The kind of each cell, and its overrides."""
    no_labels = f"{NO_LABELS} data.path={write_samples(folder / 'samples.jsonl')}"
    for overrides, seeds in ((no_labels, 10), (ZERO_ROWS, 2)):
        for seed in islice(late_seeds(overrides), seeds):
            yield "arrives", f"{overrides} seed={seed}"
    for seed in range(10):
        yield "builds up", f"{WARM_UP} dtype.adapter=fp16 optim.lr={('0.3', '0.35')[seed % 2]} seed={seed}"
    for dtype, rate, seed in product(TINY_DTYPES, RATES, range(5)):
        yield "healthy, tiny", f"{TINY} dtype={dtype} optim.lr={rate} seed={seed}"
    for seed in range(2):
        yield "healthy, real", f"{WARM_UP.replace('=110', '=70')} dtype.adapter=fp16 optim.lr=1e-3 seed={seed}"
    yield "healthy, real", f"{ZERO_ROWS.replace('=zero', '=mean').replace('=80', '=70')} seed=0"


def write_samples(path: Path) -> Path:
    """Prompts and completions from CPython's documentation; one prompt in LONG_EVERY fills the sample by itself."""
    words = " ".join(topics.values()).split()
    with path.open("w") as file:
        for number in range(SAMPLES):
            text, start = words[20 * number : 20 * number + 20], 4 if number % LONG_EVERY else 18
            sample = {"prompt": " ".join(text[:start]), "completion": f" {' '.join(text[start:])}"}
            file.write(json.dumps(sample) + "\n")
    return path


def late_seeds(overrides: str) -> Iterator[int]:
    """Seeds whose first batch with a new token, or without a label, comes between EARLIEST and LATEST."""
    from nangrid.cell.data.dataset import IGNORED, load_data
    from nangrid.cell.model.checkpoint import locate_checkpoint

    config = config_of(overrides)
    data = load_data(config, locate_checkpoint(config.model))
    samples = zip(data.train["input_ids"], data.train["labels"], strict=True)
    fails = [max(ids) >= data.base_vocab_size or max(labels[1:]) == IGNORED for ids, labels in samples]
    for seed in count():
        # The order in which the Trainer's sampler draws with this data_seed.
        order = torch.randperm(len(fails), generator=torch.Generator().manual_seed(seed)).tolist()
        if EARLIEST <= next((step for step, row in enumerate(order) if fails[row]), 0) <= LATEST:
            yield seed


def config_of(overrides: str) -> Any:
    """The composed config of a cell, without a tracker."""
    from nangrid.cell.levels import as_config
    from nangrid.commands.compose import composed

    return as_config(composed([*overrides.split(), "tracker=none"]))


class Readings:
    """Each step's largest activation per module and kurtosis per layer."""

    def __init__(self, model: nn.Module, trainer: Any) -> None:
        self.trainer = trainer
        self.dtypes: dict[str, str] = {}
        self.largest: dict[int, dict[str, float]] = defaultdict(dict)
        self.kurtosis: dict[int, dict[str, float]] = defaultdict(dict)
        picked = trainscope_layer(model)
        for name, module in model.named_modules():
            is_layer = name.split(".")[-2:-1] == ["layers"]
            if is_layer or name.endswith(("embed_tokens", "model.norm", "lm_head", "lora_B.default")):
                module.register_forward_hook(self._largest(short(name)))
            if is_layer or name == picked:
                module.register_forward_hook(self._kurtosis("picked" if name == picked else short(name)))

    def _largest(self, name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            value = first_tensor(output)
            self.dtypes[name] = str(value.dtype).removeprefix("torch.")
            self.largest[self.trainer.state.global_step][name] = value.detach().abs().max().item()

        return note

    def _kurtosis(self, name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            metrics = compute_activation_metrics(first_tensor(output).detach())
            self.kurtosis[self.trainer.state.global_step][name] = metrics["act_kurtosis"]

        return note


def first_tensor(output: Any) -> Tensor:
    """The module's output, or the first of several."""
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def short(name: str) -> str:
    """The module's name without what PEFT and transformers put before it."""
    return name.removeprefix("base_model.model.").removeprefix("model.").removesuffix(".default")


def trainscope_layer(model: nn.Module) -> str:
    """The layer whose kurtosis trainscope 1.8.1 reads: the first by name that has parameters and no children."""
    modules = dict(model.named_modules())
    owners = sorted(name.rpartition(".")[0] for name, _ in model.named_parameters())
    runs = (nn.Linear, nn.Embedding)
    return next(name for name in owners if isinstance(modules[name], runs) and not list(modules[name].children()))


def record(kind: str, overrides: str, folder: Path) -> dict[str, Any]:
    """Train one cell under the watch, without autopsy."""
    from nangrid.cell.build import background, build_cell
    from nangrid.integrations import watch_trainer

    config = config_of(overrides)
    cell = build_cell(config, folder)
    readings = Readings(cell.model, cell.trainer)
    steps: list[Any] = []
    watch = watch_trainer(cell.trainer, None, background=background(config, cell.data), on_step=steps.append)
    cell.trainer.train()
    onset = watch.clocks.onset
    dtypes = {str(p.dtype).removeprefix("torch.") for p in cell.model.parameters() if p.requires_grad}
    return {
        "kind": kind,
        "overrides": overrides,
        "onset": None if onset is None else onset.step,
        "clock": None if onset is None else onset.clock,
        "adapter": "float16" if "float16" in dtypes else min(dtypes),
        "loss": [step.loss for step in steps],
        "grad_norm": [float(step.grad_norm) for step in steps],
        "max_gradient": [step.max_gradient for step in steps],
        "dtypes": readings.dtypes,
        "largest": {name: [readings.largest[step.step].get(name) for step in steps] for name in readings.dtypes},
        "kurtosis": {
            name: [readings.kurtosis[step.step].get(name) for step in steps]
            for name in readings.kurtosis[steps[0].step]
        },
    }


def record_all(folder: Path) -> None:
    """Record the cells that `folder` does not hold yet, each in a process of its own."""
    import bitsandbytes  # noqa: F401 imported once for all processes
    import peft  # noqa: F401
    import transformers  # noqa: F401

    import nangrid.cell.build  # noqa: F401

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, overrides in cells(folder):
        path = folder / f"{hashlib.sha256(overrides.encode()).hexdigest()[:12]}.json"
        if path.exists():
            continue
        if not (child := os.fork()):
            status = 1
            try:
                found = record(kind, overrides, folder)
                path.with_suffix(".part").write_text(json.dumps(found))
                path.with_suffix(".part").rename(path)
                print(f"{kind}: {overrides}: onset {found['onset']} ({found['clock']})", flush=True)
                status = 0
            except BaseException:  # a fork must not return into the loop
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(status)
        os.waitpid(child, 0)
