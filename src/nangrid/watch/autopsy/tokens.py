"""Names the tokens of the batch at which the first non-finite number arose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nangrid.watch.autopsy.producer import Producer
from nangrid.watch.state.tensors import base_weight, embedding

MOST_TOKENS = 64
MOST_NAMED = 5

TokenPositions = list[tuple[int, int, int]]
"""Row, position and id of the tokens that one interpretation of a shape names."""


def token_ids(inputs: Any) -> Tensor | None:
    """`input_ids` of shape (samples, tokens), if the micro-batch has them."""
    ids = inputs.get("input_ids") if isinstance(inputs, dict) else None
    return ids if isinstance(ids, Tensor) and ids.dim() == 2 else None


def named_tokens(
    producer: Producer, inputs: Any, model: torch.nn.Module, nonfinite: Mapping[str, Tensor]
) -> TokenPositions:
    """The tokens whose elements are non-finite in what the origin wrote, at most 64.

    Empty if no dimension stands for tokens, or if several interpretations of the shape fit and name different tokens.
    `nonfinite`: masks of the trainables' non-finite elements; the embedding's rows can rule out an interpretation.
    """
    ids = token_ids(inputs)
    if ids is None or _is_of_the_vocabulary(producer, model):
        return []
    hit = _embedding_rows(model, nonfinite, ids)
    readings = _readings(producer, ids, model, hit)
    decoder_ids = _decoder_ids(inputs, model, producer.place.module)
    if decoder_ids is not None:
        decoder_readings = _readings(producer, decoder_ids, model, hit)
        # Labels are shifted by the model in its own way, so that their positions are not known.
        if decoder_readings and "decoder_input_ids" not in inputs:
            return []
        readings += decoder_readings
    readings = _consistent(readings, hit)
    return readings[0][:MOST_TOKENS] if len({frozenset(reading) for reading in readings}) == 1 else []


def _is_of_the_vocabulary(producer: Producer, model: torch.nn.Module) -> bool:
    """Whether the same entries of the vocabulary are hit at every position: then no token of the batch is at fault."""
    return bool(producer.columns) and producer.output.shape[-1] == vocabulary_size(model)


def _readings(producer: Producer, ids: Tensor, model: torch.nn.Module, hit: set[int] | None) -> list[TokenPositions]:
    """The tokens named by each interpretation that the shape of what the origin wrote allows.

    Known shapes: hidden states (B, T, ...), (T, B, ...) and (B * T, ...), attention (B, heads, T, ...) and
    (B * heads, T, ...), one number per token (B, T), and matrices with one row per vocabulary entry.
    """
    (batch, length), shape, rows = ids.shape, tuple(producer.output.shape), producer.bad_rows
    candidates: list[Iterable[tuple[int, int]]] = []
    # Every fitting shape counts: with B = T or heads = T several do, and named_tokens decides whether they agree.
    if len(shape) >= 3:
        if shape[:2] == (batch, length):
            candidates.append((i[0], i[1]) for i in rows)
        if shape[:2] == (length, batch):
            candidates.append((i[1], i[0]) for i in rows)
        if len(shape) == 4 and shape[0] == batch and shape[2] == length:
            candidates.append((i[0], i[2]) for i in rows)
        if len(shape) == 3 and shape[0] % batch == 0 and shape[1] == length and shape[0] != batch:
            candidates.append((i[0] // (shape[0] // batch), i[1]) for i in rows)
    elif len(shape) == 2:
        if shape[0] == batch * length:
            candidates.append(_flat_positions(rows, ids, hit))
        if shape == (batch, length) and not _is_a_width(length, model):
            # bad_rows drops the last dimension, here the position: only the first element's is known.
            candidates.append([(producer.first_index[0], producer.first_index[1])])
        if shape[0] == vocabulary_size(model) or producer.place.node.startswith("EmbeddingBackward"):
            candidates.append(_of_vocabulary((i[0] for i in rows), ids))
    return [reading for positions in candidates if (reading := _named(positions, ids))]


def _named(positions: Iterable[tuple[int, int]], ids: Tensor) -> TokenPositions:
    return [(row, at, int(ids[row, at])) for row, at in dict.fromkeys(positions)]


def _flat_positions(rows: Sequence[tuple[int, ...]], ids: Tensor, hit: set[int] | None) -> list[tuple[int, int]]:
    """Positions in a (B * T, ...) output: sample-major, unless only time-major names tokens whose embedding was hit."""
    batch, length = ids.shape
    sample_major = [(i[0] // length, i[0] % length) for i in rows]
    time_major = [(i[0] % batch, i[0] // batch) for i in rows]

    def fits(positions: list[tuple[int, int]]) -> bool:
        return hit is not None and hit.issuperset(int(ids[position]) for position in positions)

    return time_major if fits(time_major) and not fits(sample_major) else sample_major


def _consistent(readings: list[TokenPositions], hit: set[int] | None) -> list[TokenPositions]:
    """The readings that name only tokens whose embedding row was hit; all readings if none does."""
    return [r for r in readings if hit is not None and hit.issuperset(token for _, _, token in r)] or readings


def _embedding_rows(model: torch.nn.Module, nonfinite: Mapping[str, Tensor], ids: Tensor) -> set[int] | None:
    """The non-finite rows of the embedding that these ids index; None unless exactly one embedding fits."""
    masks = [
        nonfinite[f"{name}.weight"]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Embedding) and f"{name}.weight" in nonfinite
    ]
    masks = [mask for mask in masks if mask.dim() == 2 and mask.shape[0] > int(ids.max())]
    return set(masks[0].any(dim=1).nonzero().flatten().tolist()) if len(masks) == 1 else None


def _decoder_ids(inputs: Any, model: torch.nn.Module, module: str) -> Tensor | None:
    """The ids that the decoder of an encoder-decoder model reads: `decoder_input_ids`, or else the labels."""
    parts = module.split(".")
    if "encoder" in parts and "decoder" not in parts:
        return None
    shifts_labels = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    ids = inputs.get("decoder_input_ids", inputs.get("labels") if shifts_labels else None)
    return ids if isinstance(ids, Tensor) and ids.dim() == 2 else None


def _is_a_width(size: int, model: torch.nn.Module) -> bool:
    """Whether a parameter has a dimension of this size: then it may count features, not tokens."""
    return any(size in parameter.shape for parameter in model.parameters())


def _of_vocabulary(entries: Iterable[int], ids: Tensor) -> Iterable[tuple[int, int]]:
    for entry in entries:
        yield from ((row, position) for row, position in (ids == entry).nonzero().tolist())


def which_rows(mask: Tensor, ids: Tensor | None, vocabulary: int | None) -> str:
    """Where the non-finite elements of a parameter are, by rows and columns; `ids` are the batch's tokens.

    A dimension of the vocabulary's size is counted in tokens, with the number of those in the batch.
    """
    parts = [f"{int(mask.sum())} of {mask.numel()} elements"]
    for dimension, name in enumerate(("rows", "columns")[: mask.dim() if mask.dim() == 2 else 0]):
        hit = mask.any(dim=1 - dimension).nonzero().flatten()
        size = mask.shape[dimension]
        if size == vocabulary and ids is not None:
            in_batch = int(torch.isin(hit, ids.cpu().to(hit.device)).sum())
            parts.append(f"{len(hit)} of {size} {name}, one per token, {in_batch} of them for tokens in this batch")
        elif len(hit) < size:
            parts.append(f"{len(hit)} of {size} {name} ({_first(hit)})")
    return "; ".join(parts)


def which_samples(mask: Tensor) -> str:
    """Where the non-finite elements of a batch tensor are, by samples, and of a table by columns."""
    elements = f"{int(mask.sum())} of {mask.numel()} elements"
    if mask.dim() == 0:
        return elements
    hit = mask.flatten(1).any(dim=1).nonzero().flatten() if mask.dim() > 1 else mask.nonzero().flatten()
    samples = f"{elements}; {len(hit)} of {len(mask)} samples ({_first(hit)})"
    if mask.dim() != 2:
        return samples
    columns = mask.any(dim=0).nonzero().flatten()
    return f"{samples}; {len(columns)} of {mask.shape[1]} columns ({_first(columns)})"


def _first(hit: Tensor) -> str:
    return ", ".join(str(int(i)) for i in hit[:MOST_NAMED]) + ", ..." * (len(hit) > MOST_NAMED)


def first_row(mask: Tensor) -> int:
    """The first row of a matrix with an element of the mask; -1 if there is none, or if it is no matrix."""
    hit = mask.any(dim=1).nonzero() if mask.dim() == 2 else mask.new_empty(0)
    return int(hit[0]) if len(hit) else -1


def vocabulary_size(model: torch.nn.Module) -> int | None:
    """Rows of the input embedding; None if it is unknown."""
    weight = _embedding_weight(model)
    return int(weight.shape[0]) if weight is not None else None


def _embedding_weight(model: torch.nn.Module) -> Tensor | None:
    """The input embedding that the model returns, or else its only nn.Embedding."""
    weight = base_weight(embedding(model, "input"))
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    return tables[0] if weight is None and len(tables) == 1 else weight


def enters_as_zeros(model: torch.nn.Module, tokens: Iterable[int]) -> bool:
    """Whether every one of these tokens has an all-zero embedding row."""
    weight = _embedding_weight(model)
    ids = sorted(set(tokens))
    if weight is None or not ids or ids[-1] >= weight.shape[0]:
        return False
    return bool((weight[ids] == 0).all(dim=1).all())
