"""Measures how long two gloo ranks under torchrun live on after a fault on rank 1.

    python bench/two_ranks.py [--runs 5]

In the fourth step the batch of rank 1 has no labels, or rank 1 is killed by SIGKILL. The time is from the moment at
which that batch is read to the end of the last process: loss, replays on both ranks, merged autopsy, and the error.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from nangrid import Watch
from nangrid.integrations import watch_trainer
from nangrid.records.autopsy import read_autopsy

KINDS = ("DDP", "FSDP2", "Trainer", "killed")
FAULT, STEPS, BATCH, LENGTH, TOKENS = 3, 8, 4, 32, 512


class Decoder(nn.Module):
    """Two layers, 0.5 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 128)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(128, 4, 512, batch_first=True) for _ in range(2))
        self.head = nn.Linear(128, TOKENS)

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return {"loss": nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten())}


class Samples(Dataset[dict[str, Tensor]]):
    """The samples of this rank; reading those of the faulty step notes the time."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.of_rank_1 = dist.get_rank() == 1
        self.ids = torch.randint(0, TOKENS, (STEPS * BATCH, LENGTH), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        labels = self.ids[number]
        if self.of_rank_1 and number // BATCH == FAULT:
            onset = self.folder / "onset"
            if not onset.exists():
                onset.write_text(str(time.time()))
            if self.kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            labels = torch.full_like(labels, -100)
        return {"ids": self.ids[number], "labels": labels}


class InOrder(Trainer):
    """Reads the samples of its rank in order, as the loops do."""

    def get_train_dataloader(self) -> Any:
        return batches(self.train_dataset)


def batches(samples: Any) -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(samples, batch_size=BATCH)


def train(folder: Path, kind: str) -> None:
    """Run on each rank."""
    dist.init_process_group("gloo")
    (folder / f"pid{dist.get_rank()}").write_text(str(os.getpid()))
    torch.manual_seed(0)
    samples, model = Samples(folder, kind), Decoder()
    if kind == "Trainer":
        options = TrainingArguments(
            str(folder / "out"), max_steps=STEPS, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True
        )
        trainer = InOrder(model=model, args=options, train_dataset=samples)
        watch_trainer(trainer, folder)
        trainer.train()
        return
    wrapped: Any = fully_shard(model) if kind == "FSDP2" else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
    watch = Watch(wrapped, optimizer, folder)
    for batch in watch.batches(batches(samples)):
        optimizer.zero_grad()
        wrapped(**batch)["loss"].backward()
        optimizer.step()


def seconds(kind: str) -> Iterator[float]:
    """Per process, the ranks and the launcher, the seconds from the onset to its end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [*launcher, __file__, "--rank", kind, name]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (folder / "onset").exists():
            time.sleep(0.01)
        onset = float((folder / "onset").read_text() or time.time())
        for pid in (*(int((folder / f"pid{rank}").read_text()) for rank in "01"), process.pid):
            while process.poll() is None and psutil.pid_exists(pid):
                time.sleep(0.01)
            yield time.time() - onset
        autopsy = read_autopsy(folder)
        found = None if autopsy is None else (autopsy.rank, autopsy.step, autopsy.mechanism)
        assert found == (None if kind == "killed" else (1, FAULT, "empty-labels")), found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rank", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        train(Path(options.rank[1]), options.rank[0])
        return
    print("| | until all processes have ended, median (s) | most (s) |\n| --- | ---: | ---: |")
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(options.runs):
        for kind in KINDS:
            times[kind].append(max(seconds(kind)))
    for kind in KINDS:
        print(f"| {kind} | {statistics.median(times[kind]):.1f} | {max(times[kind]):.1f} |")


if __name__ == "__main__":
    main()
