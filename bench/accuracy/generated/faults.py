"""Holds the faults of generated cases: layers that add a small term, which fails at one level of their second input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from case import NO_NAME, Declared, origin
from torch import Tensor, nn

HALF = "fp16-activation-overflow"
LOG = "log-of-zero"
EXP = "exp-overflow"
"""In float16, too: the exponents are beyond what float32 could hold."""
SCALE = "zero-scale"
"""Division by a norm, a deviation or a root mean square of 0; the sum of numbers that are never negative is a norm."""
DOMAIN = "outside-domain"
POLE = "derivative-at-pole"
NOTHING = "mean-over-nothing"


class Fault(nn.Module):
    """x + 0.01 * term(x, level), where the level of most batches is harmless."""

    def forward(self, x: Tensor, level: float) -> Tensor:
        return x + 0.01 * self.term(x, level).to(x.dtype)

    def term(self, x: Tensor, level: float) -> Tensor:
        raise NotImplementedError


class LogOfSoftmax(Fault):
    """A probability underflows to 0 before its logarithm is taken."""

    def term(self, x: Tensor, level: float) -> Tensor:
        p = (x * level).softmax(-1)
        return torch.log(p)  # DEFECT


class LogOfNegative(Fault):
    """The argument of a logarithm has the wrong sign."""

    def term(self, x: Tensor, level: float) -> Tensor:
        size = (x.abs() + 0.1) * level
        return torch.log(size)  # DEFECT


class Log1pOfMinusOne(Fault):
    """log(1 - p) where a sigmoid is saturated at 1."""

    def term(self, x: Tensor, level: float) -> Tensor:
        p = torch.sigmoid((x.abs() + 0.1) * level)
        return torch.log1p(-p)  # DEFECT


class LogitOfOne(Fault):
    """The logit of a probability that was rounded to 1."""

    def term(self, x: Tensor, level: float) -> Tensor:
        p = torch.sigmoid((x.abs() + 0.1) * level)
        return torch.logit(p)  # DEFECT


class ExpOverflow(Fault):
    """exp of a log variance far beyond the range."""

    def term(self, x: Tensor, level: float) -> Tensor:
        log_variance = (x.abs() + 0.1) * level
        return torch.exp(log_variance)  # DEFECT


class CoshOverflow(Fault):
    """cosh of an error in another unit."""

    def term(self, x: Tensor, level: float) -> Tensor:
        error = (x.abs() + 0.1) * level
        return torch.cosh(error)  # DEFECT


class DivisionByEmptySum(Fault):
    """Weights are divided by their sum, and all are 0."""

    def term(self, x: Tensor, level: float) -> Tensor:
        weights = (x.abs() + 0.1) * level
        return weights / weights.sum(-1, keepdim=True)  # DEFECT


class ReciprocalOfZero(Fault):
    """The inverse of a depth of 0."""

    def term(self, x: Tensor, level: float) -> Tensor:
        depth = (x.abs() + 1.0) * level
        return torch.reciprocal(depth)  # DEFECT


class NormWithoutEps(Fault):
    """An RMS norm without eps over a row of zeros."""

    def term(self, x: Tensor, level: float) -> Tensor:
        square = ((x + 0.1) * level).square().mean(-1, keepdim=True)
        inverse = torch.rsqrt(square)  # DEFECT
        return x * inverse


class ConstantFeature(Fault):
    """Standardisation by a deviation that is 0."""

    def term(self, x: Tensor, level: float) -> Tensor:
        centred = (x - x.mean(-1, keepdim=True)) * level
        deviation = centred.square().sum(-1, keepdim=True).detach().sqrt()
        return centred / deviation  # DEFECT


class RootOfNegative(Fault):
    """A fractional power of a negative number."""

    def term(self, x: Tensor, level: float) -> Tensor:
        size = (x.abs() + 0.1) * level
        return size.pow(0.45)  # DEFECT


class AcosBeyondOne(Fault):
    """The angle of a cosine above 1."""

    def term(self, x: Tensor, level: float) -> Tensor:
        cosine = torch.cos(0.1 * x) * level
        return torch.acos(cosine)  # DEFECT


class AtanhOfOne(Fault):
    """The hyperbolic distance of a point on the rim."""

    def term(self, x: Tensor, level: float) -> Tensor:
        radius = torch.tanh((x.abs() + 0.1) * level)
        return torch.atanh(radius)  # DEFECT


class MaskedRow(Fault):
    """A softmax over a row that is masked everywhere."""

    def term(self, x: Tensor, level: float) -> Tensor:
        masked = torch.arange(x.shape[-1]) >= level
        scores = x.masked_fill(masked, float("-inf"))
        return torch.softmax(scores, -1)  # DEFECT


class TwoMasks(Fault):
    """Two masks of the most negative number are added, over a whole row."""

    def term(self, x: Tensor, level: float) -> Tensor:
        masked = torch.arange(x.shape[-1]) >= level
        mask = torch.zeros_like(x).masked_fill(masked, torch.finfo(x.dtype).min)
        mask = mask + mask  # DEFECT
        return torch.softmax(x + mask, -1)


class StdOfOne(Fault):
    """The unbiased deviation of one value."""

    def term(self, x: Tensor, level: float) -> Tensor:
        count = int(level)
        spread = x.detach().flatten()[:count].std()  # DEFECT
        return x * spread


class MeanOfNothing(Fault):
    """The mean over a selection that is empty."""

    def term(self, x: Tensor, level: float) -> Tensor:
        chosen = x[: int(level)]
        return x * chosen.mean()  # DEFECT


class HalfProduct(Fault):
    """A product computed in float16 whatever the model's dtype is."""

    def term(self, x: Tensor, level: float) -> Tensor:
        size = (x.abs() + 1.0).half()
        scaled = size * level  # DEFECT
        return scaled.to(x.dtype) * 1e-6


class SlopeOfRoot(Fault):
    """The slope of a square root at 0."""

    def term(self, x: Tensor, level: float) -> Tensor:
        squares = (x * level).square().sum(-1, keepdim=True)
        return torch.sqrt(squares)  # DEFECT


class SlopeOfPower(Fault):
    """The slope of a cube root at 0."""

    def term(self, x: Tensor, level: float) -> Tensor:
        size = (x.abs() + 0.1) * level
        return size.pow(1 / 3)  # DEFECT


class LogBehindWhere(Fault):
    """A logarithm that `where` guards in the forward pass only."""

    def term(self, x: Tensor, level: float) -> Tensor:
        size = (x.abs() + 0.1) * level
        return torch.where(size > 0, torch.log(size), torch.zeros_like(size))  # DEFECT


class ClippedExp(Fault):
    """An exponential that is clamped after it has overflowed."""

    def term(self, x: Tensor, level: float) -> Tensor:
        size = (x.abs() + 0.1) * level
        return torch.exp(size).clamp(max=10.0)  # DEFECT


@dataclass(frozen=True)
class FaultSpec:
    """A fault, its harmless and its fatal level, and what is true about it."""

    layer: type[Fault]
    safe: float
    fatal: float
    origins: tuple[Declared, ...]
    mechanism: str = NO_NAME
    clock: str = "loss"
    fatal_in_half: float | None = None
    """The level for float16, where the other one would exceed the range too early."""
    dtypes: tuple[str, ...] = ("float32", "float64", "bfloat16", "float16", "autocast")


def _forward(kinds: str, ops: str, **options: bool) -> tuple[Declared, ...]:
    return (origin("forward", kinds, ops, **options),)  # type: ignore[arg-type]


_LOG0 = _forward("divide_by_zero", "log")
_ROOT = (origin("backward", "divide_by_zero invalid", "div", node="SqrtBackward*"),)
_WHERE = (origin("backward", "invalid", "div", node="LogBackward*"), *_LOG0)
_CLIPPED = (
    origin("forward", "overflow", "exp"),
    origin("backward", "invalid", "mul", node="ExpBackward*", first_nan=True),
)
_MASK = _forward("invalid", "_softmax", first_nan=True)
_POWER = (origin("backward", "divide_by_zero", "pow", node="PowBackward*"),)

FAULTS = (
    FaultSpec(LogOfSoftmax, 1.0, 1e5, _LOG0, LOG, fatal_in_half=2e3),
    FaultSpec(LogOfNegative, 1.0, -1.0, _forward("invalid", "log"), LOG),
    FaultSpec(Log1pOfMinusOne, 1.0, 2e3, _forward("divide_by_zero", "log1p"), LOG, fatal_in_half=200.0),
    FaultSpec(LogitOfOne, 1.0, 2e3, _forward("divide_by_zero", "logit"), LOG, fatal_in_half=200.0),
    FaultSpec(ExpOverflow, 1.0, 1e5, _forward("overflow", "exp"), EXP, fatal_in_half=2e3),
    FaultSpec(CoshOverflow, 1.0, 1e5, _forward("overflow", "cosh"), EXP, fatal_in_half=2e3),
    FaultSpec(DivisionByEmptySum, 1.0, 0.0, _forward("invalid", "div"), SCALE),
    FaultSpec(ReciprocalOfZero, 1.0, 0.0, _forward("divide_by_zero", "reciprocal")),
    FaultSpec(NormWithoutEps, 1.0, 0.0, _forward("divide_by_zero", "rsqrt"), SCALE),
    FaultSpec(ConstantFeature, 1.0, 0.0, _forward("invalid", "div"), SCALE),
    FaultSpec(RootOfNegative, 1.0, -1.0, _forward("invalid", "pow"), DOMAIN),
    FaultSpec(AcosBeyondOne, 0.9, 1.5, _forward("invalid", "acos"), DOMAIN),
    FaultSpec(AtanhOfOne, 0.5, 500.0, _forward("divide_by_zero", "atanh"), DOMAIN, fatal_in_half=200.0),
    FaultSpec(MaskedRow, 8, 0, _MASK, "masked-row-softmax"),
    FaultSpec(TwoMasks, 8, 0, _forward("overflow", "add"), "double-mask-overflow"),
    FaultSpec(StdOfOne, 4, 1, _forward("invalid", "std"), NOTHING),
    FaultSpec(MeanOfNothing, 2, 0, _forward("invalid", "mean"), NOTHING),
    FaultSpec(HalfProduct, 1.0, 1e6, _forward("overflow", "mul"), HALF),
    FaultSpec(SlopeOfRoot, 1.0, 0.0, _ROOT, POLE, clock="gradient"),
    FaultSpec(SlopeOfPower, 1.0, 0.0, _POWER, POLE, clock="gradient"),
    FaultSpec(LogBehindWhere, 1.0, 0.0, _WHERE, LOG, clock="gradient"),
    FaultSpec(ClippedExp, 1.0, 1e5, _CLIPPED, EXP, clock="gradient", fatal_in_half=2e3),
)
