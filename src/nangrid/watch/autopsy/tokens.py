"""Which tokens of the batch stand where the first non-finite number arose?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nangrid.watch.autopsy.trace import Producer

MOST_TOKENS = 64
MOST_NAMED = 5

TokenPositions = list[tuple[int, int, int]]
"""Row, position and id of the tokens that one way to read a shape names."""


def token_ids(inputs: Any) -> Tensor | None:
    """`input_ids` of shape (samples, tokens), if the micro-batch has them."""
    ids = inputs.get("input_ids") if isinstance(inputs, dict) else None
    return ids if isinstance(ids, Tensor) and ids.dim() == 2 else None


def named_tokens(
    producer: Producer, inputs: Any, model: torch.nn.Module, nonfinite: Mapping[str, Tensor]
) -> TokenPositions:
    """The tokens whose elements are non-finite in what the origin wrote.

    Empty where no dimension stands for tokens, or where several readings of the shape fit and name different ones.
    `nonfinite` are masks of the trainables' non-finite elements: the embedding's rows speak against a reading.
    """
    ids = token_ids(inputs)
    if ids is None:
        return []
    hit = _embedding_rows(model, nonfinite, ids)
    readings = _readings(producer, ids, model, hit)
    other = _decoder_ids(inputs, model, producer.place.module)
    if other is not None:
        theirs = _readings(producer, other, model, hit)
        known = "decoder_input_ids" in inputs
        if theirs and not known:  # the labels, shifted by the model in its own way
            return []
        readings += theirs
    readings = _not_contradicted(readings, hit)
    return readings[0][:MOST_TOKENS] if len({frozenset(reading) for reading in readings}) == 1 else []


def _readings(producer: Producer, ids: Tensor, model: torch.nn.Module, hit: set[int] | None) -> list[TokenPositions]:
    """Who is named by each way to read the shape of what the origin wrote.

    Understands hidden states (B, T, ...), (T, B, ...) and (B * T, ...), attention (B, heads, T, ...) and
    (B * heads, T, ...), a number a token (B, T), and matrices with a row a vocabulary entry.
    """
    (batch, length), shape, rows = ids.shape, tuple(producer.output.shape), producer.bad_rows
    found: list[Iterable[tuple[int, int]]] = []
    if len(shape) >= 3:
        if shape[:2] == (batch, length):
            found.append((i[0], i[1]) for i in rows)
        if shape[:2] == (length, batch):
            found.append((i[1], i[0]) for i in rows)
        if len(shape) == 4 and shape[0] == batch and shape[2] == length:
            found.append((i[0], i[2]) for i in rows)
        if len(shape) == 3 and shape[0] % batch == 0 and shape[1] == length and shape[0] != batch:
            found.append((i[0] // (shape[0] // batch), i[1]) for i in rows)
    elif len(shape) == 2:
        if shape[0] == batch * length:
            found.append(_flat(rows, ids, hit))
        if shape == (batch, length) and not _is_a_width(length, model):
            found.append([(producer.first_index[0], producer.first_index[1])])  # the others' columns are not kept
        if shape[0] == vocabulary_size(model) or producer.place.node.startswith("EmbeddingBackward"):
            found.append(_of_vocabulary((i[0] for i in rows), ids))
    return [reading for positions in found if (reading := _named(positions, ids))]


def _named(positions: Iterable[tuple[int, int]], ids: Tensor) -> TokenPositions:
    return [(row, at, int(ids[row, at])) for row, at in dict.fromkeys(positions)]


def _flat(rows: Iterable[tuple[int, ...]], ids: Tensor, hit: set[int] | None) -> list[tuple[int, int]]:
    """Samples after each other, unless the embedding's rows say that it is times."""
    batch, length = ids.shape
    samples = [(i[0] // length, i[0] % length) for i in rows]
    times = [(i[0] % batch, i[0] // batch) for i in rows]
    kept = _not_contradicted([_named(samples, ids), _named(times, ids)], hit)
    return times if kept == [_named(times, ids)] != [_named(samples, ids)] else samples


def _not_contradicted(readings: list[TokenPositions], hit: set[int] | None) -> list[TokenPositions]:
    """Those that only name tokens whose embedding was hit; all of them where there are none such."""
    return [r for r in readings if hit is not None and hit.issuperset(token for _, _, token in r)] or readings


def _embedding_rows(model: torch.nn.Module, nonfinite: Mapping[str, Tensor], ids: Tensor) -> set[int] | None:
    """The non-finite rows of the one embedding that has a row for each of the tokens; None where there is not one."""
    masks = [
        nonfinite[f"{name}.weight"]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and f"{name}.weight" in nonfinite
    ]
    masks = [mask for mask in masks if mask.dim() == 2 and mask.shape[0] > int(ids.max())]
    return set(masks[0].any(dim=1).nonzero().flatten().tolist()) if len(masks) == 1 else None


def _decoder_ids(inputs: Any, model: torch.nn.Module, module: str) -> Tensor | None:
    """What a decoder beside the encoder of `input_ids` reads: given, or made of the labels."""
    parts = module.split(".")
    if "encoder" in parts and "decoder" not in parts:
        return None
    made = inputs.get("labels") if getattr(getattr(model, "config", None), "is_encoder_decoder", False) else None
    ids = inputs.get("decoder_input_ids", made)
    return ids if isinstance(ids, Tensor) and ids.dim() == 2 else None


def _is_a_width(size: int, model: torch.nn.Module) -> bool:
    """Whether a parameter has a dimension of this size: then it may be features, not tokens."""
    return any(size in parameter.shape for parameter in model.parameters())


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
            told.append(f"{len(hit)} of {size} {name} ({_first(hit)})")
    return "; ".join(told)


def which_samples(mask: Tensor) -> str:
    """Where the non-finite elements of a tensor of the batch are."""
    told = f"{int(mask.sum())} of {mask.numel()} elements"
    if mask.dim() == 0:
        return told
    hit = mask.flatten(1).any(dim=1).nonzero().flatten() if mask.dim() > 1 else mask.nonzero().flatten()
    return f"{told}; {len(hit)} of {len(mask)} samples ({_first(hit)})"


def _first(hit: Tensor) -> str:
    return ", ".join(str(int(i)) for i in hit[:MOST_NAMED]) + ", ..." * (len(hit) > MOST_NAMED)


def vocabulary_size(model: torch.nn.Module) -> int | None:
    """Rows of the input embedding: the one that the model gives out, or the only one it has."""
    weight = _embedding_weight(model)
    if weight is None:
        tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
        weight = tables[0] if len(tables) == 1 else None
    return int(weight.shape[0]) if weight is not None else None


def _embedding_weight(model: torch.nn.Module) -> Tensor | None:
    getter = getattr(model, "get_input_embeddings", None)
    try:
        embedding = getter() if getter else None
    except NotImplementedError:  # a transformers model without one
        return None
    weight = getattr(getattr(embedding, "base_layer", embedding), "weight", None)
    return weight if isinstance(weight, Tensor) else None


def enters_as_zeros(model: torch.nn.Module, tokens: Iterable[int]) -> bool:
    """Whether every one of these tokens has an embedding row of zeros."""
    weight = _embedding_weight(model)
    ids = sorted(set(tokens))
    if weight is None or not ids or ids[-1] >= weight.shape[0]:
        return False
    return bool((weight[ids] == 0).all(dim=1).all())
