"""Sets up transformers.Trainer so that a cell is reproducible."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils import deterministic
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed

from nangrid.cell.config import Config
from nangrid.cell.data.dataset import CellData, Collate
from nangrid.cell.model.base import device
from nangrid.records.start_from import find_start

_OPTIM_NAMES = {"adamw_8bit": "adamw_bnb_8bit", "paged_adamw_32bit": "paged_adamw_32bit"}
"""Levels for which TrainingArguments has another name."""


class CellTrainer(Trainer):
    """A Trainer whose evaluations do not change the training that follows, to the last bit."""

    first_new_id: int
    new_tokens: dict[int, int]
    """Number of new tokens in the batches of each step."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch the batches of one optimizer step and count the new tokens in them."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        count = sum(int((batch["input_ids"] >= self.first_new_id).sum()) for batch in batches)
        self.new_tokens[self.state.global_step] = count
        return batches, items

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without drawing from the random stream of training (each DataLoader draws a seed)."""
        with torch.random.fork_rng():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics


def make_deterministic(config: Config) -> None:
    """Seed everything and ask torch for reproducible kernels, before anything random is built.

    The fill of uninitialised memory stays off: it would turn each read of such memory into a NaN.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    set_seed(config.seed)


def make_trainer(model: PeftModel, data: CellData, config: Config, directory: Path) -> CellTrainer:
    """The trainer of one cell, with a constant learning rate: so the horizon changes no earlier step."""
    optim, on_cpu = config.optim, device() == "cpu"
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=config.horizon + (find_start(config.start_from).step if config.start_from else 0),
        per_device_train_batch_size=config.data.batch,
        per_device_eval_batch_size=config.data.batch,
        gradient_accumulation_steps=config.data.accumulation,
        optim=_OPTIM_NAMES.get(optim.name, optim.name),
        learning_rate=optim.lr,
        adam_epsilon=optim.eps,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.clip,
        lr_scheduler_type="constant_with_warmup" if optim.warmup else "constant",
        warmup_steps=optim.warmup,
        bf16=config.dtype.autocast == "bf16",
        fp16=config.dtype.autocast == "fp16",
        use_cpu=on_cpu,
        seed=config.seed,
        data_seed=config.seed,
        eval_strategy="steps" if config.data.eval_every else "no",
        eval_steps=config.data.eval_every or None,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        ddp_find_unused_parameters=False,  # to look for them breaks checkpointing=reentrant
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    trainer = CellTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.held_out,
        data_collator=Collate(data.pad_id, config.data.padding_side, config.data.packing),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.first_new_id, trainer.new_tokens = data.base_vocab_size, {}
    return trainer
