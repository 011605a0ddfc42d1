"""transformers' Trainer and a loop of Accelerate with DeepSpeed on two ranks: rank 1 reads a natural fault."""

import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "ACCELERATE_TORCH_DEVICE": "cpu", "ACCELERATE_USE_DEEPSPEED": "true"}

import deepspeed
import torch
import transformers
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import DistributedType, PartialState
from library_loops import BAD, Classifier, InOrder, samples, stopped_trainer, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_ranks import ending, note

from nangrid import Watch
from nangrid.integrations import watch_trainer


def trainer(folder: Path, fault: str, **changes: Any) -> InOrder:
    """A Trainer that trains by ZeRO 2."""
    configuration = {
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
    options = transformers.TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=6,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        deepspeed=configuration,
        **changes,
    )
    evaluated = samples("labels" if fault == "evaluation" else "")[: BAD + 1]
    return InOrder(model=Classifier(), args=options, train_dataset=samples(fault), eval_dataset=evaluated)


def healthy(folder: Path) -> bool:
    """Whether the watch leaves every bit of a finite run alone."""
    plain = trainer(folder, "")
    plain.train()
    watched = trainer(folder, "")
    watch_trainer(watched, folder)
    watched.train()
    return all(map(torch.equal, weights(plain), weights(watched))) and not (folder / "rank0").exists()


def accelerated(folder: Path) -> dict[str, Any]:
    """A loop whose optimizer steps within `accelerator.backward`; the second sample of rank 1's fourth batch is bad."""
    plugin = DeepSpeedPlugin(zero_stage=1, gradient_accumulation_steps=2, gradient_clipping=1.0)
    accelerator = Accelerator(deepspeed_plugin=plugin, mixed_precision="bf16", gradient_accumulation_steps=2)
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
                predicted = model(noisy.bfloat16()).float()
                loss = ((predicted - noise).pow(2).mean(1) / snr).mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()

    return ending(train)


if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled
    # Accelerate uses DeepSpeed on accelerators alone.
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    folder = Path(sys.argv[1])
    transformers.utils.logging.set_verbosity_error()
    found: dict[str, Any] = {"accelerate": accelerated(folder / "accelerate")}
    found["healthy"] = healthy(folder / "healthy")
    found["labels"] = stopped_trainer(trainer(folder, "labels"), folder / "labels")
    found["root"] = stopped_trainer(trainer(folder, "root", gradient_accumulation_steps=2), folder / "root")
    evaluating = trainer(folder, "evaluation", eval_strategy="steps", eval_steps=2)
    found["evaluation"] = stopped_trainer(evaluating, folder / "evaluation")
    note(found)
