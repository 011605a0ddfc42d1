"""Holds rarer faults of generated cases; they were written after the rules that name mechanisms, and without them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from case import NO_NAME, origin
from generated.faults import DOMAIN, EXP, LOG, NOTHING, POLE, SCALE, Fault, FaultSpec
from torch import Tensor

WIDE = ("float32", "float64", "bfloat16", "autocast")
SINGLE = ("float32", "bfloat16")
"""Dtypes with the range of float32."""


class ErfinvOfOne(Fault):
    """The normal quantile of a probability that was rounded to 1."""

    def term(self, x: Tensor, level: float) -> Tensor:
        p = torch.tanh((x.abs() + 0.1) * level)
        return torch.erfinv(p)  # DEFECT


class GammaAtZero(Fault):
    """The log-gamma function of a count of 0, where it has a pole."""

    def term(self, x: Tensor, level: float) -> Tensor:
        count = (x.abs() + 1.0) * level
        return torch.lgamma(count)  # DEFECT


class BitsOfZero(Fault):
    """The information content of an event of probability 0, in bits."""

    def term(self, x: Tensor, level: float) -> Tensor:
        p = torch.sigmoid(x) * level
        return -torch.log2(p)  # DEFECT


class AngleBetweenEqualVectors(Fault):
    """The angle of a cosine that is exactly 1, where the slope of acos is infinite."""

    def term(self, x: Tensor, level: float) -> Tensor:
        cosine = torch.cos((torch.tanh(x).abs() + 0.5) * level)
        return torch.acos(cosine)  # DEFECT


class SquareOfHugeNumbers(Fault):
    """The energy of a signal whose unit is wrong: its square exceeds float32. No name fits."""

    def term(self, x: Tensor, level: float) -> Tensor:
        signal = (x.detach().abs() + 0.1) * level
        energy = signal.pow(2)  # DEFECT
        return x * energy


class LongProduct(Fault):
    """A product over a row of ratios that are far above 1. No name fits."""

    def term(self, x: Tensor, level: float) -> Tensor:
        ratios = (x.detach().abs() + 1.0) * level
        product = torch.cumprod(ratios, -1)  # DEFECT
        return x * product[..., -1:]


class SoftmaxByHand(Fault):
    """exp(x - max) over a row that is masked everywhere: -inf - -inf."""

    def term(self, x: Tensor, level: float) -> Tensor:
        masked = torch.arange(x.shape[-1]) >= level
        scores = x.masked_fill(masked, float("-inf"))
        shifted = scores - scores.amax(-1, keepdim=True)  # DEFECT
        weights = shifted.exp()
        return weights / weights.sum(-1, keepdim=True)


class MaskTimesInfinity(Fault):
    """Banned scores of -inf are multiplied by a mask of 0. No name fits."""

    def term(self, x: Tensor, level: float) -> Tensor:
        kept = torch.arange(x.shape[-1]) < level
        scores = x.masked_fill(~kept, float("-inf"))
        return scores * kept  # DEFECT


class FusedDivision(Fault):
    """addcdiv by a sensitivity that is 0. No name fits."""

    def term(self, x: Tensor, level: float) -> Tensor:
        sensitivity = (x.abs() + 1.0) * level
        return torch.addcdiv(x, x.abs() + 0.1, sensitivity)  # DEFECT


class ScoresOfHugeVectors(Fault):
    """The product of two matrices exceeds float32. No name fits."""

    def term(self, x: Tensor, level: float) -> Tensor:
        size = (x.detach().abs() + 0.1) * level
        scores = size @ size.transpose(-1, -2)  # DEFECT
        return x * scores.mean(-1, keepdim=True)


class VarianceOfOneSample(Fault):
    """Statistics over a batch, of which one sample is left."""

    def term(self, x: Tensor, level: float) -> Tensor:
        samples = x.detach()[: int(level)]
        return x * samples.var(0)  # DEFECT


class NormalisedZeroVector(Fault):
    """F.normalize without its eps, of a vector of zeros."""

    def term(self, x: Tensor, level: float) -> Tensor:
        vector = (x + 0.1) * level
        return F.normalize(vector, dim=-1, eps=0.0)  # DEFECT


class SoftplusByHand(Fault):
    """log(1 + exp(x)) of a large x."""

    def term(self, x: Tensor, level: float) -> Tensor:
        size = (x.abs() + 0.1) * level
        return torch.log(1 + torch.exp(size))  # DEFECT


class OddsOfACertainty(Fault):
    """p / (1 - p) of a probability that was rounded to 1. No name fits."""

    def term(self, x: Tensor, level: float) -> Tensor:
        p = torch.sigmoid((x.abs() + 0.1) * level)
        return torch.sqrt(p / (1 - p))  # DEFECT


RARER_FAULTS = (
    FaultSpec(
        ErfinvOfOne, 0.5, 500.0, (origin("forward", "divide_by_zero", "erfinv"),), DOMAIN, dtypes=("float32", "float64")
    ),
    FaultSpec(GammaAtZero, 1.0, 0.0, (origin("forward", "divide_by_zero", "lgamma"),), dtypes=("float32", "float64")),
    FaultSpec(BitsOfZero, 1.0, 0.0, (origin("forward", "divide_by_zero", "log2"),), LOG),
    FaultSpec(
        AngleBetweenEqualVectors,
        1.0,
        0.0,
        (origin("backward", "divide_by_zero", "rsqrt", node="AcosBackward*"),),
        POLE,
        clock="gradient",
    ),
    FaultSpec(SquareOfHugeNumbers, 1.0, 1e25, (origin("forward", "overflow", "pow"),), NO_NAME, dtypes=SINGLE),
    FaultSpec(LongProduct, 1.0, 1e6, (origin("forward", "overflow", "cumprod"),), NO_NAME, dtypes=SINGLE),
    FaultSpec(SoftmaxByHand, 8, 0, (origin("forward", "invalid", "sub", first_nan=True),), "masked-row-softmax"),
    FaultSpec(MaskTimesInfinity, 8, 4, (origin("forward", "invalid", "mul", first_nan=True),), NO_NAME),
    FaultSpec(FusedDivision, 1.0, 0.0, (origin("forward", "divide_by_zero", "addcdiv"),), NO_NAME, dtypes=WIDE),
    FaultSpec(ScoresOfHugeVectors, 1.0, 1e22, (origin("forward", "overflow", "bmm"),), NO_NAME, dtypes=SINGLE),
    FaultSpec(VarianceOfOneSample, 3, 1, (origin("forward", "invalid", "var"),), NOTHING),
    FaultSpec(NormalisedZeroVector, 1.0, 0.0, (origin("forward", "invalid", "div"),), SCALE),
    FaultSpec(SoftplusByHand, 1.0, 1e5, (origin("forward", "overflow", "exp"),), EXP, fatal_in_half=2e3),
    FaultSpec(OddsOfACertainty, 1.0, 2e3, (origin("forward", "divide_by_zero", "div"),), NO_NAME, fatal_in_half=200.0),
)
