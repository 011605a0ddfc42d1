"""Adds the rows of new tokens to embedding and head, and initialises them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from nangrid.cell.config import InitConfig

_ROWS: dict[str, Callable[[Tensor, int, InitConfig], Tensor]] = {
    "zero": lambda old, n, init: old.new_zeros(n, old.shape[1]),
    "mean": lambda old, n, init: old.float().mean(0).to(old.dtype).expand(n, -1),
    "normal": lambda old, n, init: torch.randn(n, old.shape[1]).mul(init.std).to(old),
    # A separate heap block: pages of the resized matrix would come from the kernel, all zero.
    "uninitialised": lambda old, n, init: old.new_empty(n, old.shape[1]),
}


def add_rows(model: PreTrainedModel, first: int, count: int, init: InitConfig) -> int:
    """Give the ids `first` .. `first + count - 1` their rows, and return the number of matrices changed.

    `first` is the size of the base tokenizer. A model with padded embeddings has spare rows from there on, which are
    overwritten. A model with fewer rows than its tokenizer has ids gets the missing ones too. Tied matrices stay tied;
    a bias of the head counts as a column of it.
    """
    if count == 0:
        return 0
    end = first + count
    first = min(first, model.get_input_embeddings().weight.shape[0])
    if init.name == "mvn":
        with no_init_weights():
            model.resize_token_embeddings(first)
        model.resize_token_embeddings(end, mean_resizing=True)
    elif end > model.get_input_embeddings().weight.shape[0]:
        # resize_token_embeddings alone initialises a whole new matrix and throws it away: 2-3 s on Gemma.
        with no_init_weights():
            model.resize_token_embeddings(end, mean_resizing=False)
    matrices = _matrices(model)
    for weight in matrices if init.name != "mvn" else []:
        weight[first:end] = _ROWS[init.name](weight[:first], end - first, init)
    return len(matrices)


def _matrices(model: PreTrainedModel) -> list[Tensor]:
    """The embedding, the head unless it is tied, and the head's bias as a matrix of one column."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    matrices = [embedding.weight.data]
    if head is not None and head.weight is not embedding.weight:
        matrices.append(head.weight.data)
    if getattr(head, "bias", None) is not None:
        matrices.append(head.bias.data.unsqueeze(1))
    return matrices
