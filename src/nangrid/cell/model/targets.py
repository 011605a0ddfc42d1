"""Which modules of this very model do the targets name?

Levels name modules as Llama and Gemma do. Another architecture has the same parts under other names.
"""

from __future__ import annotations

from collections.abc import Iterable

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nangrid.records.errors import InputError

EMBEDDING, HEAD = "embed_tokens", "lm_head"
ATTENTION = ("q_proj", "v_proj")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every linear layer of a decoder layer: where all are asked for, all linear layers are meant."""
_ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, Conv1D)


def find_targets(model: PreTrainedModel, asked: Iterable[str]) -> dict[str, list[str]]:
    """What PEFT's target_modules takes, for each name that was asked for: itself where the model has it.

    InputError for a name that is neither a module of the model nor another architecture's word for one.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _ADAPTABLE)}
    asked = list(asked)
    missing = [name for name in asked if not _has(layers, name)]
    linear = _linear(model, layers) if missing and set(LINEAR) <= set(asked) else []
    found = {}
    for name in asked:
        if linear and name in LINEAR:
            found[name] = linear
        else:
            found[name] = _translated(model, layers, name) if name in missing else [name]
    return found


def renamed(model: PreTrainedModel, found: dict[str, list[str]]) -> list[str]:
    """One line for each translation."""
    asked: dict[tuple[str, ...], list[str]] = {}
    for name, names in found.items():
        if names != [name]:
            asked.setdefault(tuple(_kinds(names)), []).append(name)
    return [
        f"targets: {', '.join(names)} of a model of type {model.config.model_type}: took {', '.join(kinds)}"
        for kinds, names in asked.items()
    ]


def _has(layers: Iterable[str], target: str) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in layers)


def _linear(model: PreTrainedModel, layers: dict[str, nn.Module]) -> list[str]:
    """As PEFT's all-linear: the head is none of them."""
    head = model.get_output_embeddings()
    return [name for name, layer in layers.items() if isinstance(layer, nn.Linear | Conv1D) and layer is not head]


def _translated(model: PreTrainedModel, layers: dict[str, nn.Module], target: str) -> list[str]:
    if target in (EMBEDDING, HEAD):
        matrix = model.get_input_embeddings() if target == EMBEDDING else model.get_output_embeddings()
        names = [name for name, layer in layers.items() if layer is matrix]
    else:
        names = _attention(model) if target in ATTENTION else []
    if not names or not all(_has(layers, name) for name in names):
        raise InputError(
            f"targets.modules: a model of type {model.config.model_type} has no {target}: "
            f"name some of its own, targets.modules=[{','.join(_kinds(layers))}]."
        )
    return names


def _attention(model: PreTrainedModel) -> list[str]:
    """PEFT's names for the query and value projections of an architecture."""
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type, [])
    return known if isinstance(known, list) else []


def _kinds(layers: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in layers if not name.rpartition(".")[2].isdecimal()})
