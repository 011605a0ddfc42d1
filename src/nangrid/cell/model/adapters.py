"""Adds LoRA adapters, gradient checkpointing and the upcast to a base model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import PreTrainedModel

from nangrid.cell.config import Config
from nangrid.cell.model.base import DTYPES
from nangrid.records.errors import InputError


def add_adapters(model: PreTrainedModel, config: Config, modules: Iterable[str]) -> tuple[PeftModel, int]:
    """Attach adapters to `modules` as a user's script would, and count the parameters that `upcast` changed."""
    changed = 0
    if config.upcast.name == "kbit":
        before = {n: p.dtype for n, p in model.named_parameters()}
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        changed = sum(p.dtype != before[n] for n, p in model.named_parameters())
    with warnings.catch_warnings():
        # The new names do not exist in transformers 5.17, which is supported too.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
        # Gemma's embedding and head share their weight; their adapters do not. The ledger says so.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True.*")
        # GPT-2 keeps its linear layers transposed; PEFT finds out and sets fan_in_fan_out itself.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False.*")
        _set_checkpointing(model, config.checkpointing.name)
        adapted = get_peft_model(model, _lora(config, modules), autocast_adapter_dtype=False)
    trainables = [p for p in adapted.parameters() if p.requires_grad]
    if config.dtype.adapter != "base":
        _cast(trainables, DTYPES[config.dtype.adapter])
    if config.upcast.name == "trainable":
        changed = sum(p.dtype is not torch.float32 for p in trainables)
        _cast(trainables, torch.float32)
    return adapted, changed


def _lora(config: Config, modules: Iterable[str]) -> LoraConfig:
    targets = config.targets
    return LoraConfig(
        r=targets.rank,
        lora_alpha=targets.alpha,
        lora_dropout=targets.dropout,
        target_modules=list(modules),
        task_type="CAUSAL_LM",
    )


def _set_checkpointing(model: Any, level: str) -> None:
    # Before PEFT wraps the model: PEFT then makes the inputs require gradients, without which reentrant
    # checkpointing trains nothing (huggingface/transformers#26221).
    if level == "off":
        return
    if not model.supports_gradient_checkpointing:
        raise InputError(f"checkpointing={level} is not supported by {type(model).__name__}: type checkpointing=off.")
    model.gradient_checkpointing_enable({"use_reentrant": level == "reentrant"})


def _cast(parameters: list[torch.nn.Parameter], dtype: torch.dtype) -> None:
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
