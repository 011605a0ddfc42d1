"""Names the modules that can get an adapter, as Llama and Gemma call them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nangrid.records.errors import InputError

EMBEDDING, HEAD = "embed_tokens", "lm_head"
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Every linear layer of a decoder layer; naming all of them requests all linear layers of the model."""
GEMMA = (*LINEAR, EMBEDDING, HEAD)


def check_names(names: Sequence[str]) -> None:
    """InputError for a text that can name no module."""
    if not names:
        raise InputError("targets.modules=[] leaves nothing to train: name at least one module.")
    for name in names:
        if not re.fullmatch(r"\w+(\.\w+)*", name):
            raise InputError(f"targets.modules=[{name}] is not the name of a module: type a name such as q_proj.")


def check_gemma(names: Sequence[str], model: str) -> None:
    """InputError for a module that the built-in Gemma models do not have."""
    for name in names:
        if name.rpartition(".")[2] not in GEMMA:
            raise InputError(
                f"targets.modules=[{name}] is not a module of model={model}: choose from {', '.join(GEMMA)}."
            )
