"""Rebuilds failures of attention, masks and experts, reported for transformers, PyTorch, mistral and others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import mlp, replaced, train
from torch import Tensor, nn

NO_PADDING = torch.zeros(3, 5, dtype=torch.bool)
SOME_PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])


class Block(nn.Module):
    """Single-head attention and a linear layer over the mean."""

    def __init__(self, attention: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.attention, self.out = attention, nn.Linear(width, 3)

    def forward(self, x: Tensor, padding: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.out(self.attention(x, padding)).mean(1).float(), y)


def sentences(number: int, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Vectors, which of them are padding, and a class."""
    return [(torch.randn(3, 5, 8).to(dtype), SOME_PADDING, torch.randint(0, 3, (3,))) for _ in range(number)]


@case(
    "hyunwoongko/transformer#40",
    "softmax of a masked row",
    (2, "loss"),
    origin("forward", "invalid", "_softmax", "attention", node="SoftmaxBackward*", first_nan=True),
    mechanism="masked-row-softmax",
)
def padding_masked_along_queries(fixed: bool = False) -> Loop:
    """The padding mask is broadcast along the keys: a padded query's whole row is -inf."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            scores = self.query(x) @ self.key(x).transpose(1, 2) / 8**0.5
            mask = padding.unsqueeze(1) if fixed else padding.unsqueeze(2)
            return F.softmax(scores.masked_fill(mask, float("-inf")), dim=-1) @ x  # DEFECT

    torch.manual_seed(140)
    model = Block(Attention())
    batches = [(x, NO_PADDING, y) for x, _, y in sentences(5)]
    batches = replaced(batches, 2, (batches[2][0], SOME_PADDING, batches[2][2]))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "NVIDIA-NeMo/Automodel#2658",
    "two masks added",
    (3, "loss"),
    origin("forward", "overflow", "add", "attention"),
    mechanism="double-mask-overflow",
)
def two_planes_of_the_smallest_number(fixed: bool = False) -> Loop:
    """Two planes of finfo.min are added in bfloat16: cells that both mask are -inf, in one sample whole rows."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Linear(8, 8)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            smallest = torch.finfo(x.dtype).min
            keys, queries = padding.unsqueeze(1), padding.unsqueeze(2)
            zero = torch.zeros((), dtype=x.dtype)
            if fixed:
                mask = torch.where(keys | queries, smallest, zero)
            else:
                mask = torch.where(keys, smallest, zero) + torch.where(queries, smallest, zero)  # DEFECT
            scores = self.query(x) @ x.transpose(1, 2)
            return F.softmax(scores + mask, dim=-1) @ x

    torch.manual_seed(141)
    model = Block(Attention()).bfloat16()
    batches = [(x, NO_PADDING, y) for x, _, y in sentences(6, torch.bfloat16)]
    all_padding = torch.tensor([[False] * 5, [True] * 5, [False] * 5])
    batches = replaced(batches, 3, (batches[3][0], all_padding, batches[3][2]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-2), model, batches)


@case(
    "huggingface/transformers#18057",
    "float16 scores",
    (2, "loss"),
    origin("forward", "overflow", "add", "attention"),
    mechanism="fp16-activation-overflow",
)
def mask_added_to_negative_scores(fixed: bool = False) -> Loop:
    """finfo.min of float16 is added to negative scores: below -65504 they become -inf, in a row that is all masked."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Linear(8, 8)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            scores = -(x @ x.transpose(1, 2)).abs()
            smallest = torch.finfo(torch.float16).min
            scores = scores + torch.where(padding.unsqueeze(1), smallest, 0.0).half()  # DEFECT
            if fixed:
                scores = scores.clamp(min=smallest)
            return F.softmax(scores, dim=-1) @ self.value(x)

    torch.manual_seed(142)
    model = Block(Attention()).half()
    batches = sentences(5, torch.float16)
    padding = torch.tensor([[False] * 5, [True] * 5, [False] * 5])
    batches = replaced(batches, 2, (10 * batches[2][0], padding, batches[2][2]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-4), model, batches)


@case(
    "huggingface/transformers#382",
    "float16 mask",
    (1, "loss"),
    origin("forward", "overflow", "_to_copy", "attention", node="ToCopy*"),
    origin("forward", "invalid", "mul", "attention", at="ALSO", first_nan=True),
    mechanism="fp16-activation-overflow",
)
def mask_of_1e10_in_float16(fixed: bool = False) -> Loop:
    """The mask's value 1e10 is cast to float16, where it is inf; where nothing is masked it is multiplied by 0."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Linear(8, 8)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            value = torch.full((1, 1), 1e4 if fixed else 1e10)
            scores = x @ x.transpose(1, 2)
            if padding.any():
                value = value.to(scores.dtype)  # DEFECT
                scores = scores - value * padding.unsqueeze(1)  # ALSO
            return F.softmax(scores, dim=-1) @ self.value(x)

    torch.manual_seed(143)
    model = Block(Attention()).half()
    batches = [(x, NO_PADDING, y) for x, _, y in sentences(4, torch.float16)]
    batches = replaced(batches, 1, (batches[1][0], SOME_PADDING, batches[1][2]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-4), model, batches)


@case(
    "stanford-crfm/mistral#66",
    "float16 scores",
    (4, "loss"),
    origin("forward", "overflow", "bmm", "attention"),
    mechanism="fp16-activation-overflow",
)
def scores_scaled_after_the_product(fixed: bool = False) -> Loop:
    """Q @ K is computed in float16 before it is divided by the root of the width; scaling K first keeps it in range."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Linear(8, 8)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            scale = 64**-0.5
            keys = x * scale if fixed else x
            scores = x @ keys.transpose(1, 2)  # DEFECT
            scores = scores if fixed else scores * scale
            return F.softmax(scores, dim=-1) @ self.value(x)

    torch.manual_seed(144)
    model = Block(Attention()).half()
    batches = sentences(7, torch.float16)
    batches = replaced(batches, 4, (torch.full((3, 5, 8), 120.0).half(), *batches[4][1:]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-5), model, batches)


@case(
    "Stability-AI/stablediffusion#89",
    "float16 scores",
    (2, "loss"),
    origin("forward", "overflow", "bmm", "attention"),
    mechanism="fp16-activation-overflow",
)
def einsum_of_queries_and_keys(fixed: bool = False) -> Loop:
    """Cross attention of a diffusion model: the einsum of q and k exceeds float16."""

    class CrossAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8, bias=False) for _ in range(3))

        def forward(self, x: Tensor, context: Tensor) -> Tensor:
            q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
            if fixed:
                q, k = q.float(), k.float()
            sim = torch.einsum("bid,bjd->bij", q, k) * 8**-0.5  # DEFECT
            return torch.einsum("bij,bjd->bid", sim.softmax(-1).to(v.dtype), v)

    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = CrossAttention()

        def forward(self, x: Tensor, context: Tensor, noise: Tensor) -> Tensor:
            return F.mse_loss((self.attention(x, context) / 64).float(), noise.float())

    torch.manual_seed(145)
    model = Denoiser().half()
    nn.init.eye_(model.attention.to_q.weight)
    nn.init.eye_(model.attention.to_k.weight)
    batches = [tuple(torch.randn(2, 4, 8).half() for _ in range(3)) for _ in range(5)]
    batches = replaced(batches, 2, (batches[2][0] * 200, batches[2][1] * 200, batches[2][2]))
    return train(model, torch.optim.SGD(model.parameters(), lr=1e-6), model, batches)


@case(
    "pytorch/pytorch#41508",
    "softmax of a masked row",
    (3, "loss"),
    origin("forward", "invalid", "_softmax", "attention.mha", node="SoftmaxBackward*", first_nan=True),
    mechanism="masked-row-softmax",
)
def multihead_attention_over_padding_only(fixed: bool = False) -> Loop:
    """nn.MultiheadAttention with a key padding mask that is true everywhere for one sample."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            if fixed:
                padding = padding & ~padding.all(1, keepdim=True)
            out: Tensor = self.mha(x, x, x, key_padding_mask=padding)[0]  # DEFECT
            return out

    torch.manual_seed(146)
    model = Block(Attention())
    batches = sentences(6)
    empty = torch.tensor([[False] * 5, [True] * 5, [False] * 5])
    batches = replaced(batches, 3, (batches[3][0], empty, batches[3][2]))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, batches)


@case(
    "sgl-project/sglang#31017",
    "division by a sum",
    (2, "loss"),
    origin("forward", "invalid", "div", "router"),
    mechanism="zero-scale",
)
def expert_weights_that_all_underflow(fixed: bool = False) -> Loop:
    """Sigmoid routing with a selection bias: all chosen weights are 0, and they are divided by their sum.

    The sum of weights that are never negative is a norm of theirs, so zero-scale is the name.
    """

    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.bias = nn.Linear(6, 4), nn.Parameter(torch.zeros(4), requires_grad=False)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            scores = self.gate(x).sigmoid()
            chosen = (scores + self.bias).topk(2, dim=-1).indices
            weights = scores.gather(1, chosen)
            total = weights.sum(-1, keepdim=True) + (1e-20 if fixed else 0.0)
            return weights / total, chosen  # DEFECT

    class MoE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.experts = Router(), nn.ModuleList(nn.Linear(6, 3) for _ in range(4))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            weights, chosen = self.router(x)
            outputs = torch.stack([expert(x.clamp(-3, 3)) for expert in self.experts], 1)
            picked = outputs.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 3))
            return F.cross_entropy((weights.unsqueeze(-1) * picked).sum(1), y)

    torch.manual_seed(147)
    model = MoE()
    with torch.no_grad():
        model.router.gate.weight[:] = -model.router.gate.weight.abs()
    batches = [(torch.randn(5, 6), torch.randint(0, 3, (5,))) for _ in range(5)]
    x = batches[2][0].clone()
    x[3] = 2000.0
    batches = replaced(batches, 2, (x, batches[2][1]))
    return train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), model, batches)


@case(
    "WHU-AISE/TVDiag#5",
    "division by a sum",
    (3, "loss"),
    origin("forward", "invalid", "div"),
    mechanism="zero-scale mean-over-nothing",
)
def similarities_that_sum_to_zero(fixed: bool = False) -> Loop:
    """Supervised contrastive similarities are divided by their sum over the others, which is 0 for a lone sample.

    It is a normalisation by a sum that is 0, and a weighted mean over no positive sample: both names fit.
    """
    torch.manual_seed(148)
    model = mlp(5, 8, 4)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        z = F.normalize(model(x), dim=1)
        same = (y.unsqueeze(0) == y.unsqueeze(1)).float() - torch.eye(len(y))
        similar = torch.exp(z @ z.t()) * same
        total = similar.sum(1, keepdim=True)
        share = similar / (total + 1e-8 if fixed else total)  # DEFECT
        return -(share * (z @ z.t())).sum(1).mean()

    batches = [(torch.randn(4, 5), torch.tensor([0, 0, 1, 1])) for _ in range(6)]
    batches = replaced(batches, 3, (batches[3][0], torch.tensor([0, 0, 1, 2])))
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), loss, batches)
