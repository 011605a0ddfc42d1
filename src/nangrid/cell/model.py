"""How does a checkpoint become the frozen, quantised base model of a cell?"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from nangrid.cell.checkpoint import Checkpoint
from nangrid.cell.config import Config

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def device() -> str:
    """Where cells train: cuda where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(config: Config, checkpoint: Checkpoint) -> PreTrainedModel:
    """Load the base model in the storage dtype, quantise its linear layers and freeze it."""
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.path,
        dtype=DTYPES[config.dtype.storage],
        quantization_config=_quantisation(config),
        attn_implementation=config.model.attn,
        device_map=device() if device() == "cuda" else None,
    )
    model.config.use_cache = False
    model.requires_grad_(False)
    _keep_training_layout(model)
    return model


def _quantisation(config: Config) -> BitsAndBytesConfig | None:
    if config.quant.name == "none":
        return None
    if config.quant.name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quant.name,
        bnb_4bit_compute_dtype=DTYPES[config.dtype.compute],
        bnb_4bit_use_double_quant=config.quant.double,
    )


def _keep_training_layout(model: Any) -> None:
    # On an AVX512-BF16 CPU one eval-mode forward repacks a Linear4bit into a layout without autograd, for
    # good: after an evaluation its adapters got no gradient (bitsandbytes 0.50.2, nn/modules.py).
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
