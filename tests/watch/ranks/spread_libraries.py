"""transformers' Trainer and a loop of Accelerate that spread the model over two ranks: rank 1 reads a natural fault."""

import os
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.state import DistributedType, PartialState
from library_loops import BAD, Classifier, InOrder, samples, stopped_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from two_ranks import ending

from nangrid import Watch
from nangrid.integrations import watch_trainer
from nangrid.watch.state.tensors import local


def use(library: str) -> None:
    """Have Accelerate use DEEPSPEED or FSDP, which it does on accelerators alone."""
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", f"ACCELERATE_USE_{library}": "true"}
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    transformers.utils.logging.set_verbosity_error()


def trainer(folder: Path, fault: str, **changes: Any) -> InOrder:
    options = transformers.TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=6,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **changes,
    )
    evaluated = samples("labels" if fault == "evaluation" else "")[: BAD + 1]
    return InOrder(model=Classifier(), args=options, train_dataset=samples(fault), eval_dataset=evaluated)


def weights(run: InOrder) -> list[Tensor]:
    return [local(p).detach().clone() for p in run.model.parameters()]


def healthy(folder: Path, **spread: Any) -> bool:
    """Whether the watch leaves every bit of a finite run alone."""
    plain = trainer(folder, "", **spread)
    plain.train()
    watched = trainer(folder, "", **spread)
    watch_trainer(watched, folder)
    watched.train()
    return all(map(torch.equal, weights(plain), weights(watched))) and not (folder / "rank0").exists()


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


def found_by_ranks(folder: Path, plugin: dict[str, Any], **spread: Any) -> dict[str, Any]:
    """What both libraries have found; `spread`: how a Trainer spreads the model."""
    found: dict[str, Any] = {"accelerate": accelerated(folder / "accelerate", **plugin)}
    found["healthy"] = healthy(folder / "healthy", **spread)
    found["labels"] = stopped_trainer(trainer(folder, "labels", **spread), folder / "labels")
    accumulating = trainer(folder, "root", gradient_accumulation_steps=2, **spread)
    found["root"] = stopped_trainer(accumulating, folder / "root")
    evaluating = trainer(folder, "evaluation", eval_strategy="steps", eval_steps=2, **spread)
    found["evaluation"] = stopped_trainer(evaluating, folder / "evaluation")
    return found
