"""Rebuilds bugs of divisions and roots, as DEBAR and PyTorch's users report them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import Loop, case, origin
from loops import digits, mlp, train
from torch import Tensor, nn

LOG0 = origin("forward", "divide_by_zero", "log")


@case(
    "DEBAR: reciprocal",
    "reciprocal",
    (4, "loss"),
    origin("forward", "divide_by_zero", "reciprocal", "inverse_depth"),
)
def inverse_depth() -> Loop:
    """Depth estimation by ReLU, turned into disparity: one pixel's depth is exactly 0."""

    class InverseDepth(nn.Module):
        def forward(self, depth: Tensor) -> Tensor:
            return torch.reciprocal(depth)  # DEFECT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.inverse_depth = nn.Conv2d(1, 1, 3, padding=1), InverseDepth()

        def forward(self, x: Tensor) -> Tensor:
            return self.inverse_depth(F.relu(self.features(x) + 1.0))

    torch.manual_seed(50)
    model = Net()
    batches = [(torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)) for _ in range(7)]
    batches[4][0][1, 0, 3, 3] = -50.0
    batches[4][0][1, 0, 3, 4] = 50.0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return train(model, optimizer, lambda x, y: F.l1_loss(model(x), y), batches)


@case(
    "DEBAR: rsqrt",
    "rsqrt",
    (5, "loss"),
    origin("forward", "divide_by_zero", "rsqrt", "blocks.2.norm"),
    mechanism="zero-scale",
)
def rms_norm_without_eps() -> Loop:
    """RMSNorm by hand without eps in each of three blocks; dropout with 0.99 of the third block's input leaves a row
    of zeros after step 4, where a scheduler raises it.
    """

    class RMSNorm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True))  # DEFECT

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.norm, self.dense = nn.Dropout(0.05), RMSNorm(), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.dense(self.norm(self.drop(x))))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.out = nn.ModuleList(Block() for _ in range(3)), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return self.out(x)

    torch.manual_seed(51)
    model = Net()

    def schedule(step: int) -> None:
        model.blocks[2].drop.p = 0.05 if step < 4 else 0.99

    batches = [(torch.randn(10, 8), torch.randn(10, 1)) for _ in range(9)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return train(model, optimizer, lambda x, y: F.mse_loss(model(x), y), batches, schedule)


@case(
    "PyTorch users: norm",
    "sqrt at 0",
    (3, "gradient"),
    origin("backward", "divide_by_zero", "div", node="SqrtBackward*"),
    mechanism="derivative-at-pole",
)
def gradient_free_residual_norm() -> Loop:
    """A penalty on the distance of two predictions, by a root of a sum of squares; a pair of identical inputs is 0
    apart: 1 / 0 times 0.
    """
    torch.manual_seed(52)
    model = mlp(6, 10, 3, act=nn.Tanh)

    def loss(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        difference = model(a) - model(b)
        distance = torch.sqrt((difference**2).sum(dim=1))  # DEFECT
        return F.mse_loss(distance, y)

    batches = [[torch.randn(8, 6), torch.randn(8, 6), torch.rand(8)] for _ in range(6)]
    batches[3][1][2] = batches[3][0][2]
    return train(model, torch.optim.SGD(model.parameters(), lr=0.05), loss, batches)


@case(
    "PyTorch users: pairwise distance",
    "sqrt at 0",
    (0, "gradient"),
    origin("backward", "divide_by_zero invalid", "div", "miner", node="SqrtBackward*"),
    mechanism="derivative-at-pole",
)
def triplet_loss_diagonal() -> Loop:
    """Batch-hard triplet loss with all pairwise distances by the binomial formula, clamped at 0: the diagonal is 0,
    and the hardest positive masks it only afterwards. The first step already fails.
    """

    class Miner(nn.Module):
        def forward(self, e: Tensor, same: Tensor) -> Tensor:
            squares = (e.unsqueeze(0) - e.unsqueeze(1)).square().sum(2)
            distance = squares.clamp(min=0).sqrt()  # DEFECT
            positive = (distance * same).amax(1)
            negative = (distance + 1e3 * same).amin(1)
            return F.relu(positive - negative + 0.5).mean()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.miner = mlp(64, 24, 6), Miner()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.miner(self.embed(x), (y.unsqueeze(0) == y.unsqueeze(1)).float())

    torch.manual_seed(53)
    model = Net()
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-3), model, [digits(16, s) for s in range(4)])


@case(
    "PyTorch users: standard deviation",
    "std of a constant",
    (5, "loss"),
    origin("forward", "invalid", "div", "standardise"),
    mechanism="zero-scale",
)
def constant_feature() -> Loop:
    """Each batch is standardised by its own statistics; in the sixth one a sensor gave the same value throughout: 0 /
    0.
    """

    class Standardise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            centred = x - x.mean(0)
            return centred / centred.square().mean(0).sqrt()  # DEFECT

    torch.manual_seed(54)
    model = nn.Sequential()
    model.add_module("standardise", Standardise())
    model.add_module("net", mlp(5, 12, 1))
    batches = [(torch.randn(16, 5) * 3 + 1, torch.randn(16, 1)) for _ in range(8)]
    batches[5][0][:, 2] = 7.0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return train(model, optimizer, lambda x, y: F.mse_loss(model(x), y), batches)


@case(
    "PyTorch users: standard deviation",
    "std of a constant",
    (4, "gradient"),
    origin("backward", "divide_by_zero", "div", "diversity", node="SqrtBackward*"),
    mechanism="derivative-at-pole",
)
def std_as_a_penalty() -> Loop:
    """A variance term keeps embeddings apart (VICReg) by the root of a variance without eps: a batch that repeats one
    sample has none, and the root's slope is 1 / 0.
    """

    class Diversity(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            spread = z.var(dim=0).sqrt()  # DEFECT
            return F.relu(1 - spread).mean()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.diversity = nn.Linear(6, 4), Diversity()

        def forward(self, x: Tensor) -> Tensor:
            return self.diversity(self.embed(x))

    torch.manual_seed(55)
    model = Net()
    batches = [(torch.randn(12, 6),) for _ in range(7)]
    batches[4] = (torch.zeros(12, 6),)
    return train(model, torch.optim.SGD(model.parameters(), lr=0.01), model, batches)


@case(
    "PyTorch users: cosine",
    "division by a norm",
    (4, "loss"),
    origin("forward", "invalid", "div", "match"),
    mechanism="zero-scale",
)
def cosine_by_hand() -> Loop:
    """Query and document as means of word vectors, their cosine by hand; an empty document is all padding: 0 / 0."""

    class Cosine(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))  # DEFECT

    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.match = nn.Embedding(40, 8, padding_idx=0), Cosine()

        def forward(self, query: Tensor, document: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(self.match(self.words(query).mean(1), self.words(document).mean(1)), y)

    torch.manual_seed(56)
    model = Siamese()
    batches = [(torch.randint(1, 40, (9, 4)), torch.randint(1, 40, (9, 7)), torch.rand(9)) for _ in range(7)]
    batches[4][1][6] = 0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-2), model, batches)


@case(
    "PyTorch users: masked mean",
    "division by a count",
    (6, "loss"),
    origin("forward", "invalid", "div"),
    mechanism="mean-over-nothing",
)
def masked_mean_of_nothing() -> Loop:
    """An autoencoder for incomplete tables: the error of each row over the values it has. A row has none."""
    torch.manual_seed(57)
    model = mlp(7, 5, 7, act=nn.Tanh)

    def loss(x: Tensor, known: Tensor) -> Tensor:
        error = (model(x * known) - x).square() * known
        per_row = error.sum(1) / known.sum(1)  # DEFECT
        return per_row.mean()

    batches = [(torch.randn(10, 7), (torch.rand(10, 7) < 0.8).float()) for _ in range(9)]
    for _, known in batches:
        known[:, 0] = 1
    batches[6][1][4] = 0
    return train(model, torch.optim.Adam(model.parameters(), lr=1e-2), loss, batches)


@case(
    "PyTorch users: class weights",
    "division by a sum of weights",
    (3, "loss"),
    origin("forward", "invalid", "nll_loss_forward nll_loss", node="NllLossBackward*"),
    mechanism="empty-labels",
)
def class_weight_of_zero() -> Loop:
    """Cross entropy with weights 1 / frequency, the background class left out by a weight of 0; a batch of background
    alone is a weighted mean over nothing.
    """
    torch.manual_seed(58)
    model = mlp(64, 20, 10)
    weight = torch.tensor([0.0] + [1.0] * 9)
    batches = [digits(12, seed) for seed in range(6)]
    batches[3] = (batches[3][0], torch.zeros(12).long())

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, weight=weight)  # DEFECT

    return train(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, batches)


@case(
    "PyTorch users: dice",
    "division by a sum",
    (4, "loss"),
    origin("forward", "invalid", "div", "dice"),
    mechanism="mean-over-nothing",
)
def dice_of_empty_masks() -> Loop:
    """Dice loss without smoothing: prediction (a thresholded ReLU) and mask are empty in one slice.

    The total counts the pixels of both, and no pixel is left: mean-over-nothing.
    """

    class Dice(nn.Module):
        def forward(self, p: Tensor, t: Tensor) -> Tensor:
            overlap, total = (p * t).flatten(1).sum(1), (p + t).flatten(1).sum(1)
            return 1 - (2 * overlap / total).mean()  # DEFECT

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dice = nn.Conv2d(1, 1, 3, padding=1), Dice()

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.dice(F.relu(self.conv(x)), t)

    torch.manual_seed(59)
    model = Net()
    with torch.no_grad():
        model.conv.bias.fill_(0.0)
        model.conv.weight.abs_()
    batches = [(torch.rand(3, 1, 6, 6), (torch.rand(3, 1, 6, 6) > 0.5).float()) for _ in range(7)]
    batches[4][0][1] = -1.0
    batches[4][1][1] = 0.0
    return train(model, torch.optim.SGD(model.parameters(), lr=0.01), model, batches)
