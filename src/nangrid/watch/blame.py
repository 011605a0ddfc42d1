"""Which tokens of the batch stand where the first non-finite number arose?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nangrid.watch.trace import Birth

MOST_TOKENS = 64
MOST_NAMED = 5


def token_ids(inputs: Any) -> Tensor | None:
    """`input_ids` of shape (samples, tokens), if the micro-batch has them."""
    ids = inputs.get("input_ids") if isinstance(inputs, dict) else None
    return ids if isinstance(ids, Tensor) and ids.dim() == 2 else None


def positions(birth: Birth, ids: Tensor) -> list[tuple[int, int]]:
    """(row, position) of the tokens whose elements are non-finite in what the origin wrote.

    Understands hidden states (B, T, ...) and (B * T, ...), attention (B, heads, T, ...) and (B * heads, T, ...),
    and matrices with a row a vocabulary entry; empty where no dimension stands for tokens.
    """
    (batch, length), shape = ids.shape, tuple(birth.output.shape)
    found: Iterable[tuple[int, int]]
    if len(shape) >= 3 and shape[:2] == (batch, length):
        found = ((index[0], index[1]) for index in birth.bad_rows)
    elif len(shape) == 4 and shape[0] == batch and shape[2] == length:
        found = ((index[0], index[2]) for index in birth.bad_rows)
    elif len(shape) == 3 and shape[0] % batch == 0 and shape[1] == length:
        found = ((index[0] // (shape[0] // batch), index[1]) for index in birth.bad_rows)
    elif len(shape) == 2 and shape[0] == batch * length:
        found = ((index[0] // length, index[0] % length) for index in birth.bad_rows)
    elif len(shape) == 2 and shape[0] > int(ids.max()) and shape[0] > batch * length:
        found = _of_vocabulary((index[0] for index in birth.bad_rows), ids)
    else:
        return []
    return list(dict.fromkeys(found))[:MOST_TOKENS]


def _of_vocabulary(entries: Iterable[int], ids: Tensor) -> Iterable[tuple[int, int]]:
    for entry in entries:
        yield from ((row, position) for row, position in (ids == entry).nonzero().tolist())


def which_rows(mask: Tensor, ids: Tensor | None, vocabulary: int | None) -> str:
    """Where the non-finite elements of a parameter are, by rows and columns; `ids` are the batch's tokens.

    A dimension as long as the vocabulary is counted in tokens, of which some may stand in the batch.
    """
    told = [f"{int(mask.sum())} of {mask.numel()} elements"]
    for dimension, name in enumerate(("rows", "columns")[: mask.dim() if mask.dim() == 2 else 0]):
        hit = mask.any(dim=1 - dimension).nonzero().flatten()
        size = mask.shape[dimension]
        if size == vocabulary and ids is not None:
            seen = int(torch.isin(hit, ids.cpu().to(hit.device)).sum())
            told.append(f"{len(hit)} of {size} {name}, one a token: {seen} of them of tokens in the batch")
        elif len(hit) < size:
            first = ", ".join(str(int(i)) for i in hit[:MOST_NAMED]) + ", ..." * (len(hit) > MOST_NAMED)
            told.append(f"{len(hit)} of {size} {name} ({first})")
    return "; ".join(told)


def vocabulary_size(model: torch.nn.Module) -> int | None:
    """Rows of the input embedding, where the model has one."""
    getter = getattr(model, "get_input_embeddings", None)
    try:
        weight = getattr(getter(), "weight", None) if getter else None
    except NotImplementedError:  # a transformers model without one
        return None
    return int(weight.shape[0]) if isinstance(weight, Tensor) else None


def enters_as_zeros(model: torch.nn.Module, tokens: Iterable[int]) -> bool:
    """Whether every one of these tokens has an embedding row of zeros."""
    getter = getattr(model, "get_input_embeddings", None)
    embedding = getter() if getter else None
    weight = getattr(getattr(embedding, "base_layer", embedding), "weight", None)
    ids = sorted(set(tokens))
    if not isinstance(weight, Tensor) or not ids or ids[-1] >= weight.shape[0]:
        return False
    return bool((weight[ids] == 0).all(dim=1).all())
