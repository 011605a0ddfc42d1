"""Trainers of transformers and Lightning and a loop of Accelerate on two ranks: rank 1 reads a natural fault."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, SequentialSampler, TensorDataset
from two_ranks import ending, note

from nangrid.integrations import LightningWatch, watch_trainer
from nangrid.watch import StepReading
from nangrid.watch.state.tensors import local

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "accelerate_loop.py"
SAMPLES, BAD = 12, 5
"""Samples, one per batch: step 2 of rank 1 reads number 5."""


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 3))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.layers(x)
        # The slope of a root is infinite at 0.
        return {"loss": nn.functional.cross_entropy(out, labels) + (x.sum() * out.mean()).pow(2).sqrt()}


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)


def samples(fault: str) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    data = [{"x": torch.rand(3) + 0.1, "labels": torch.tensor(n % 3)} for n in range(SAMPLES)]
    if fault == "labels":
        data[BAD]["labels"] = torch.tensor(-100)
    if fault == "root":
        data[BAD]["x"] = torch.zeros(3)
    return data


def trainer(folder: Path, fault: str, **changes: Any) -> InOrder:
    data = samples(fault)
    evaluated = samples("labels" if fault == "evaluation" else "")[: BAD + 1]
    options = transformers.TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=6,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **{"use_cpu": True, **changes},
    )
    return InOrder(model=Classifier(), args=options, train_dataset=data, eval_dataset=evaluated)


def weights(run: InOrder) -> list[Tensor]:
    return [local(p).detach().clone() for p in run.model.parameters()]


def healthy(folder: Path, **changes: Any) -> bool:
    """Whether the watch leaves every bit of a finite run alone."""
    plain = trainer(folder, "", **changes)
    plain.train()
    watched = trainer(folder, "", **changes)
    watch_trainer(watched, folder)
    watched.train()
    return all(map(torch.equal, weights(plain), weights(watched))) and not (folder / "rank0").exists()


def stopped(folder: Path, fault: str, **changes: Any) -> dict[str, Any]:
    """The clocks of a Trainer's run, and at which step it stopped."""
    run = trainer(folder, fault, **changes)
    readings: list[StepReading] = []
    watch = watch_trainer(run, folder, on_step=readings.append)
    run.train()
    return {"clocks": watch.clocks.first, "steps": run.state.global_step}


def accelerated(folder: Path) -> dict[str, Any]:
    """The example of the guide, as it is."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    torch.manual_seed(0)
    spec = importlib.util.spec_from_file_location("accelerate_loop", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    noisy, noise, snr = torch.randn(12, 3), torch.randn(12, 3), torch.ones(12)
    snr[7] = 0  # the second batch of rank 1
    loader = DataLoader(TensorDataset(noisy, noise, snr), batch_size=2)
    return ending(lambda: example.train(nn.Linear(3, 3), loader))


class Lightning(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = Classifier()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.classifier(**batch)["loss"]
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def lightning_run(folder: Path) -> dict[str, Any]:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    run = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, callbacks=[LightningWatch(folder)], **quiet,
        use_distributed_sampler=False,
    )  # fmt: skip
    data = samples("root" if dist.get_rank() == 1 else "")
    return ending(lambda: run.fit(Lightning(), DataLoader(data)))


if __name__ == "__main__":
    Accelerator(cpu=True)
    folder = Path(sys.argv[1])
    transformers.utils.logging.set_verbosity_error()
    found: dict[str, Any] = {"healthy": healthy(folder / "healthy")}
    found["labels"] = stopped(folder / "labels", "labels")
    found["root"] = stopped(folder / "root", "root", gradient_accumulation_steps=2)
    found["evaluation"] = stopped(folder / "evaluation", "evaluation", eval_strategy="steps", eval_steps=2)
    found["accelerate"] = accelerated(folder / "accelerate")
    found["lightning"] = lightning_run(folder / "lightning")
    note(found)
