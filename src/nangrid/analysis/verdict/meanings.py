"""Says what a level of conf/ stands for, and which code sets it in a user's script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nangrid.records.cell import CellRecord


@dataclass(frozen=True)
class Meaning:
    """One level in words, and as code."""

    text: str
    code: str = ""
    """What to type in a script that uses transformers and PEFT; empty if no single statement sets it."""


_CAST = "for p in filter(lambda p: p.requires_grad, model.parameters()): p.data = p.data.float()"
_ROWS = "rows = model.get_input_embeddings().weight.data; rows[-n_new:] = rows[:-n_new].mean(0)  # n_new: tokens added"

MEANINGS = {
    "dtype=fp32": Meaning("everything in float32", "from_pretrained(..., dtype=torch.float32)"),
    "dtype=bf16": Meaning(
        "weights, trained parameters and computation in bfloat16", "from_pretrained(..., dtype=torch.bfloat16)"
    ),
    "dtype=fp16": Meaning(
        "weights, trained parameters and computation in float16, without loss scaling",
        "from_pretrained(..., dtype=torch.float16)",
    ),
    "dtype=silent_fp16": Meaning(
        "weights, and adapters of embedding and head, stored in float16; computation in bfloat16 (autocast): what a "
        "4-bit load without a dtype gave in 2024"
    ),
    "dtype=amp_bf16": Meaning("weights in float32, computation in bfloat16 (autocast)", "TrainingArguments(bf16=True)"),
    "dtype=amp_fp16": Meaning(
        "weights in float32, computation in float16 (autocast) with loss scaling", "TrainingArguments(fp16=True)"
    ),
    "init=zero": Meaning("the embedding rows of new tokens start as zeros"),
    "init=mean": Meaning("the embedding rows of new tokens start as the mean of the old rows", _ROWS),
    "init=normal": Meaning("the embedding rows of new tokens start as small random numbers"),
    "init=mvn": Meaning(
        "the embedding rows of new tokens are drawn from the distribution of the old rows",
        "model.resize_token_embeddings(len(tokenizer), mean_resizing=True)",
    ),
    "init=uninitialised": Meaning("the embedding rows of new tokens hold whatever was in memory"),
    "optim=adamw_torch": Meaning("PyTorch's AdamW", 'TrainingArguments(optim="adamw_torch")'),
    "optim=adamw_torch_fused": Meaning("PyTorch's fused AdamW", 'TrainingArguments(optim="adamw_torch_fused")'),
    "optim=adamw_8bit": Meaning("8-bit AdamW of bitsandbytes", 'TrainingArguments(optim="adamw_8bit")'),
    "optim=paged_adamw_8bit": Meaning(
        "paged 8-bit AdamW of bitsandbytes", 'TrainingArguments(optim="paged_adamw_8bit")'
    ),
    "optim=paged_adamw_32bit": Meaning(
        "paged 32-bit AdamW of bitsandbytes", 'TrainingArguments(optim="paged_adamw_32bit")'
    ),
    "optim=adafactor": Meaning("Adafactor", 'TrainingArguments(optim="adafactor")'),
    "optim=sgd": Meaning("plain gradient descent", 'TrainingArguments(optim="sgd")'),
    "upcast=none": Meaning("no cast after the adapters were added"),
    "upcast=trainable": Meaning("the trained parameters are cast to float32", _CAST),
    "upcast=kbit": Meaning("PEFT's preparation of a quantised model", "prepare_model_for_kbit_training(model)"),
    "checkpointing=on": Meaning("gradient checkpointing", "TrainingArguments(gradient_checkpointing=True)"),
    "checkpointing=off": Meaning("no gradient checkpointing", "TrainingArguments(gradient_checkpointing=False)"),
    "quant=none": Meaning("no quantisation", "from_pretrained(...) without quantization_config"),
    "quant=nf4": Meaning(
        "4-bit NormalFloat weights", 'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")'
    ),
}
"""Level, as it is typed -> what it stands for."""


def meaning(factor: str, level: str, record: CellRecord) -> str:
    """What the level of this run stands for; empty if it is not one of conf/, or a field of it was changed."""
    changed = any(override.lstrip("+").startswith(f"{factor}.") for override in record.overrides)
    known = MEANINGS.get(f"{factor}={level}")
    return known.text if known and not changed and "script" not in record.factors else ""


def codes(levels: Sequence[str], record: CellRecord) -> list[str]:
    """The code that sets these levels in a user's script; empty if one of them has none.

    `record` is a run of the grid: the levels of a script are its author's, whatever they are called.
    """
    if "script" in record.factors:
        return []
    found = [MEANINGS[level].code if level in MEANINGS else "" for level in levels]
    return found if all(found) else []
