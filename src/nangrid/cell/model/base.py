"""Loads a checkpoint as the frozen, quantised base model of a cell."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from nangrid.cell.config import KERNELS, Config
from nangrid.cell.model.checkpoint import Checkpoint
from nangrid.records.errors import InputError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def device() -> str:
    """Device that cells train on: `cuda` if there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load_model(config: Config, checkpoint: Checkpoint) -> PreTrainedModel:
    """Load the base model in the storage dtype, quantise its linear layers and freeze it."""
    choose_kernel(config.model.attn)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            config=_causal(checkpoint),
            dtype=DTYPES[config.dtype.storage],
            quantization_config=_quantisation(config),
            attn_implementation="eager" if config.model.attn == "eager" else "sdpa",
            trust_remote_code=False,
            device_map=device() if device() == "cuda" else None,
        )
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) is not None:  # a fault of the machine, not of the model
            raise
        raise InputError(_refusal(config, checkpoint, str(error))) from error
    model.config.use_cache = False
    model.requires_grad_(False)
    _keep_training_layout(model)
    return model


def choose_kernel(attn: str) -> None:
    """Leave torch's attention one kernel, or its choice among all of them."""
    cuda = torch.backends.cuda  # despite the name the switches hold for every device
    switches = (cuda.enable_math_sdp, cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp)
    for kernel, switch in zip(KERNELS, switches, strict=True):
        switch(attn not in KERNELS or attn == kernel)


def check_length(model: PreTrainedModel, length: int) -> None:
    """InputError if samples are longer than the model's learned positions."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and re.search(r"wpe$|pos[^.]*$", name):
            # OPT and RoBERTa start counting positions at an offset
            skipped = getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
            limit = module.num_embeddings - skipped
            if length > limit:
                raise InputError(
                    f"data.length={length} is too long: the model has {limit} positions. Type data.length={limit}."
                )


def _causal(checkpoint: Checkpoint) -> Any:
    config = AutoConfig.from_pretrained(checkpoint.path, trust_remote_code=False)
    # An encoder such as BERT would otherwise attend to the token that it has to predict.
    if getattr(config, "is_decoder", True) is False:
        config.is_decoder = True
    return config


def _refusal(config: Config, checkpoint: Checkpoint, why: str) -> str:
    if "does not support an attention implementation" in why:
        return (
            f"model.attn={config.model.attn} is not supported by the model in {checkpoint.path}: type model.attn=eager."
        )
    if "trust_remote_code" in why:
        return (
            f"the model in {checkpoint.path} brings its own code, which nangrid never runs: "
            "give a model that transformers knows, model.id=/path/to/model."
        )
    return (
        f"the model in {checkpoint.path} cannot be loaded as a causal language model "
        f"({textwrap.shorten(why, 200, placeholder=' ...')}): give another, model.id=/path/to/model."
    )


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
