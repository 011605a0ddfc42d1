"""transformers' Trainer and a loop of Accelerate that spread the model over two ranks: rank 1 reads a natural fault."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from accelerate.state import DistributedType, PartialState
from library_loops import healthy, stopped
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_ranks import ending, note

from nangrid import Watch


def use(library: str) -> None:
    """Have Accelerate use DEEPSPEED or FSDP, which it does on accelerators alone."""
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", f"ACCELERATE_USE_{library}": "true"}
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    transformers.utils.logging.set_verbosity_error()


def accelerated(folder: Path, **plugin: Any) -> dict[str, Any]:
    """A loop with two batches per step; in the second batch of rank 1's second step, a sample is bad."""
    accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2, **plugin)
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    noisy, noise, snr = torch.randn(24, 3), torch.randn(24, 3), torch.ones(24)
    snr[15] = 0
    loader = DataLoader(TensorDataset(noisy, noise, snr), batch_size=2)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2), loader)
    watch = Watch(model, optimizer, folder)

    def train() -> None:
        for noisy, noise, snr in watch.batches(loader):
            with accelerator.accumulate(model):
                predicted = model(noisy.to(next(model.parameters()).dtype)).float()
                loss = ((predicted - noise).pow(2).mean(1) / snr).mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()

    return ending(train)


def note_found(folder: Path, plugin: dict[str, Any], **spread: Any) -> None:
    """Leave what both libraries have found for the test; `spread`: how a Trainer spreads the model."""
    spread["use_cpu"] = False
    found: dict[str, Any] = {"accelerate": accelerated(folder / "accelerate", **plugin)}
    found["healthy"] = healthy(folder / "healthy", **spread)
    found["labels"] = stopped(folder / "labels", "labels", **spread)
    found["root"] = stopped(folder / "root", "root", gradient_accumulation_steps=2, **spread)
    found["evaluation"] = stopped(folder / "evaluation", "evaluation", eval_strategy="steps", eval_steps=2, **spread)
    note(found)
    dist.destroy_process_group()  # else torch 2.11 may abort when the interpreter ends
