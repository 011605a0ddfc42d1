"""What do the rows of new tokens start as, in the embedding and in the head?"""

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
    # A heap block of its own: inside the resized matrix the pages would come from the kernel, all zero.
    "uninitialised": lambda old, n, init: old.new_empty(n, old.shape[1]),
}


def add_rows(model: PreTrainedModel, first: int, count: int, init: InitConfig) -> int:
    """Give the ids `first` .. `first + count - 1` their rows; how many matrices changed is returned.

    `first` is the size of the base tokenizer: models with padded embeddings have rows to spare from there on,
    and these are overwritten. Tied matrices stay tied.
    """
    if count == 0:
        return 0
    if init.name == "mvn":
        with no_init_weights():
            model.resize_token_embeddings(first)
        model.resize_token_embeddings(first + count, mean_resizing=True)
    elif first + count > model.get_input_embeddings().weight.shape[0]:
        # resize_token_embeddings alone initialises a whole new matrix and throws it away: 2-3 s on Gemma.
        with no_init_weights():
            model.resize_token_embeddings(first + count, mean_resizing=False)
    matrices = _matrices(model)
    for weight in matrices if init.name != "mvn" else []:
        weight[first : first + count] = _ROWS[init.name](weight[:first], count, init)
    return len(matrices)


def _matrices(model: PreTrainedModel) -> list[Tensor]:
    """The embedding, and the head where it has a matrix of its own."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.weight is embedding.weight
    return [module.weight.data for module in ([embedding] if tied else [embedding, head])]
