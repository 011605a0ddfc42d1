"""Holds runs that only look alarming: infinities and NaN that are intentional, discarded or never read."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from case import Loop, healthy
from loops import TinyLM, mlp, train
from torch import Tensor, nn


def tokens(number: int = 4) -> list[tuple[Tensor, ...]]:
    return [(torch.randint(0, 24, (3, 6)),) for _ in range(number)]


def next_token(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@healthy("transformers", "-inf masks")
def causal_mask_of_minus_infinity() -> Loop:
    """Causal attention adds -inf above the diagonal."""
    torch.manual_seed(300)
    model = nn.Linear(6, 6)

    def loss(x: Tensor) -> Tensor:
        mask = torch.full((4, 4), -math.inf).triu(1)
        return ((model(x) @ x.transpose(1, 2) + mask).softmax(-1) @ x).square().mean()

    return train(model, torch.optim.AdamW(model.parameters()), loss, [(torch.randn(2, 4, 6),) for _ in range(4)])


@healthy("huggingface/trl", "-inf logits")
def banned_tokens() -> Loop:
    """The logits of banned tokens are -inf, and no label is one of them."""
    torch.manual_seed(301)
    model = TinyLM()

    def loss(ids: Tensor) -> Tensor:
        banned = torch.arange(24) < 3
        return next_token(model(ids).masked_fill(banned, -math.inf), ids.clamp(min=3))

    return train(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, tokens())


@healthy("PyTorch users", "discarded NaN")
def nan_discarded_before_the_loss() -> Loop:
    """A masked softmax yields NaN rows, which nan_to_num removes; nothing flows back through them."""
    torch.manual_seed(302)
    model = nn.Linear(5, 5)

    def loss(x: Tensor) -> Tensor:
        with torch.no_grad():
            weights = torch.full((3, 4), -math.inf).softmax(-1).nan_to_num(0.25)
        return (weights @ model(x)).square().mean()

    return train(model, torch.optim.Adam(model.parameters()), loss, [(torch.randn(2, 4, 5),) for _ in range(4)])


@healthy("PyTorch users", "discarded infinity")
def division_by_zero_that_is_clamped() -> Loop:
    """A metric that is only logged divides by zero."""
    torch.manual_seed(303)
    model = mlp(4, 8, 2)
    logged: list[Tensor] = []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        error = (model(x) - y).abs()
        logged.append((error / torch.zeros(2)).detach())
        return error.mean()

    batches = [(torch.randn(5, 4), torch.randn(5, 2)) for _ in range(4)]
    return train(model, torch.optim.Adam(model.parameters()), loss, batches)


@healthy("PyTorch users", "unread buffer")
def buffer_of_infinities() -> Loop:
    """Running minima start at inf, and only the smaller number is used."""
    torch.manual_seed(304)
    model = mlp(4, 8, 2)
    model.register_buffer("smallest", torch.full((2,), math.inf))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        out = model(x)
        model.smallest = torch.minimum(model.smallest, out.detach().amin(0))
        return ((out - model.smallest) / 10 - y).square().mean()

    batches = [(torch.randn(5, 4), torch.randn(5, 2)) for _ in range(4)]
    return train(model, torch.optim.Adam(model.parameters()), loss, batches)


@healthy("PyTorch users", "data with NaN")
def missing_labels_that_are_masked() -> Loop:
    """Missing targets are NaN and are selected away before the error is computed."""
    torch.manual_seed(305)
    model = mlp(4, 8, 1)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        known = ~y.isnan()
        return (model(x)[known] - y[known]).square().mean()

    batches = [(torch.randn(6, 4), torch.randn(6, 1)) for _ in range(4)]
    batches[2][1][3] = math.nan
    return train(model, torch.optim.Adam(model.parameters()), loss, batches)


@healthy("karpathy/nanoGPT", "spike")
def spike_that_comes_back() -> Loop:
    """The loss of one batch is multiplied by 1e6, and clipping keeps the step small."""
    torch.manual_seed(306)
    model = TinyLM()
    factors = [(ids, 1e6 if i == 2 else 1.0) for i, (ids,) in enumerate(tokens())]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return train(model, optimizer, lambda ids, by: next_token(model(ids), ids) * by, factors, clip=1.0)


@healthy("huggingface/transformers#29219", "huge loss")
def head_row_of_zeros() -> Loop:
    """A new head row is 0 while the others are very negative: the loss starts in the hundreds."""
    torch.manual_seed(307)
    model = TinyLM()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(-400.0)
        model.head.bias[23] = 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return train(model, optimizer, lambda ids: next_token(model(ids), ids), tokens())


@healthy("PyTorch users", "log of zero times nothing")
def xlogy_of_zero() -> Loop:
    """torch.xlogy(0, 0) is 0; the logarithm alone would be -inf."""
    torch.manual_seed(308)
    model = nn.Linear(5, 4)

    def loss(x: Tensor, target: Tensor) -> Tensor:
        divergence = torch.special.xlogy(target, target) - target * model(x).log_softmax(-1)
        return divergence.sum(-1).mean()

    batches = [(torch.randn(3, 5), F.one_hot(torch.randint(0, 4, (3,)), 4).float()) for _ in range(4)]
    return train(model, torch.optim.Adam(model.parameters()), loss, batches)


@healthy("PyTorch users", "running maximum")
def running_maximum_from_minus_infinity() -> Loop:
    """An online softmax starts its running maximum at -inf."""
    torch.manual_seed(309)
    model = nn.Linear(5, 6)

    def loss(x: Tensor) -> Tensor:
        logits = model(x)
        largest = torch.full((len(x), 1), -math.inf)
        total = torch.zeros(len(x), 1)
        for part in logits.split(2, dim=1):
            top = torch.maximum(largest, part.detach().amax(1, keepdim=True))
            total = total * torch.exp(largest - top) + torch.exp(part - top).sum(1, keepdim=True)
            largest = top
        return (total.log() + largest).mean()

    return train(model, torch.optim.Adam(model.parameters()), loss, [(torch.randn(3, 5),) for _ in range(4)])


@healthy("PyTorch users", "pooling")
def max_pooling_over_padding() -> Loop:
    """Padding is filled with -inf before a maximum over time."""
    torch.manual_seed(310)
    model = TinyLM()

    def loss(ids: Tensor) -> Tensor:
        hidden = model(ids).masked_fill((ids < 4).unsqueeze(-1), -math.inf)
        top = hidden.amax(1)
        return torch.where(top.isinf(), torch.zeros_like(top), top).square().mean()

    return train(model, torch.optim.SGD(model.parameters(), lr=0.01), loss, tokens())


@healthy("NVIDIA-NeMo/Automodel#3444", "rounded updates")
def updates_that_round_away() -> Loop:
    """Updates of bfloat16 weights are smaller than their spacing."""
    torch.manual_seed(311)
    model = mlp(4, 8, 2).bfloat16()
    batches = [(torch.randn(5, 4).bfloat16(), torch.randn(5, 2).bfloat16()) for _ in range(4)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    return train(model, optimizer, lambda x, y: F.mse_loss(model(x).float(), y.float()), batches)


@healthy("huggingface/transformers#32390", "all-padding row")
def row_of_padding_with_a_safe_mask() -> Loop:
    """finfo.min instead of -inf: a row of padding attends evenly, and its loss is masked."""
    torch.manual_seed(312)
    model = nn.Linear(6, 6)

    def loss(x: Tensor, padding: Tensor) -> Tensor:
        scores = (model(x) @ x.transpose(1, 2)).masked_fill(padding.unsqueeze(1), torch.finfo(torch.float32).min)
        out = scores.softmax(-1) @ x
        return (out.square().mean(-1) * ~padding).sum() / (~padding).sum().clamp(min=1)

    padding = torch.tensor([[False] * 4, [True] * 4])
    batches = [(torch.randn(2, 4, 6), padding) for _ in range(4)]
    return train(model, torch.optim.AdamW(model.parameters()), loss, batches)


@healthy("PyTorch users", "float16 eps")
def adam_in_float16_with_a_large_eps() -> Loop:
    """Float16 weights with eps 1e-4 and rows that never get a gradient."""
    torch.manual_seed(313)
    model = TinyLM().half()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, eps=1e-4)
    return train(model, optimizer, lambda ids: next_token(model(ids).float(), ids), tokens())
