"""Translates LoRA targets into the module names of the loaded model.

Levels name modules as Llama and Gemma do. Other architectures have the same parts under other names.
"""

from __future__ import annotations

from collections.abc import Iterable

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nangrid.cell.model.modules import EMBEDDING, HEAD, LINEAR
from nangrid.records.errors import InputError

ATTENTION = ("q_proj", "v_proj")
_ADAPTABLE = (nn.Linear, nn.Embedding, nn.Conv1d, Conv1D)


def find_targets(model: PreTrainedModel, requested: Iterable[str]) -> dict[str, list[str]]:
    """Module names for PEFT's target_modules, per requested name: the name itself if the model has it.

    InputError for a name that is neither a module of the model nor another architecture's name for one.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _ADAPTABLE)}
    requested = list(requested)
    missing = [name for name in requested if not _has(layers, name)]
    linear = _linear(model, layers) if missing and set(LINEAR) <= set(requested) else []
    targets = {}
    for name in requested:
        if linear and name in LINEAR:
            targets[name] = linear
        else:
            targets[name] = _translated(model, layers, name) if name in missing else [name]
    return targets


def renamed(model: PreTrainedModel, targets: dict[str, list[str]]) -> list[str]:
    """One line per translated target."""
    translations: dict[tuple[str, ...], list[str]] = {}
    for name, names in targets.items():
        if names != [name]:
            translations.setdefault(tuple(_kinds(names)), []).append(name)
    return [
        f"targets: {', '.join(names)} became {', '.join(kinds)} in this {model.config.model_type} model"
        for kinds, names in translations.items()
    ]


def _has(layers: Iterable[str], target: str) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in layers)


def _linear(model: PreTrainedModel, layers: dict[str, nn.Module]) -> list[str]:
    """All linear layers but the head, as PEFT's all-linear has it."""
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
            f"targets.modules: this {model.config.model_type} model has no {target}: "
            f"name modules that it has, such as targets.modules=[{','.join(_kinds(layers))}]."
        )
    return names


def _attention(model: PreTrainedModel) -> list[str]:
    """PEFT's names for the query and value projections of an architecture."""
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type, [])
    return known if isinstance(known, list) else []


def _kinds(layers: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in layers if not name.rpartition(".")[2].isdecimal()})
