"""Grades how sure an autopsy is of its origin and of its mechanism, by fixed rules on what its experiments showed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nangrid.records import mechanisms
from nangrid.records.autopsy import Autopsy

_TESTED_BY_CHANGE = {
    mechanisms.LOG_OF_ZERO,
    mechanisms.MASKED_ROW_SOFTMAX,
    mechanisms.EXP_OVERFLOW,
    mechanisms.OUTSIDE_DOMAIN,
    mechanisms.DERIVATIVE_AT_POLE,
    mechanisms.ZERO_SCALE,
    mechanisms.FP16_ACTIVATION_OVERFLOW,
    mechanisms.ADAM_EPS_UNDERFLOW,
    mechanisms.OPTIMIZER_EPS_UNDERFLOW,
    mechanisms.MEAN_OVER_NOTHING,
    mechanisms.MASK_CAST_TO_INFINITY,
    mechanisms.DOUBLE_MASK_OVERFLOW,
    mechanisms.CTC_TARGET_TOO_LONG,
    mechanisms.NONFINITE_LEARNING_RATE,
    mechanisms.NONFINITE_DATA,
}
"""Mechanisms whose textbook change of the operation would not help if another mechanism were at work."""


class Grade(StrEnum):
    """How sure a statement is: proven, likely or unknown."""

    PROVEN = "proven"
    LIKELY = "likely"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Certainty:
    """A grade, and the observation that decides it."""

    grade: Grade
    because: str

    def __str__(self) -> str:
        """`proven (because ...)`."""
        return f"{self.grade} ({self.because})"


def origin_certainty(autopsy: Autopsy) -> Certainty:
    """How sure the origin is.

    proven: the replay repeated the failing step to the last bit, and the clock no longer trips once zeros replace what
    the origin made non-finite (ablation), or the step is finite once its operation is changed. Where several operations
    each fail the step by themselves, zeros replace what all of them made non-finite. unknown: no replay met a
    non-finite value. likely: anything between.
    """
    if not (autopsy.op or autopsy.preexisting):
        return Certainty(Grade.UNKNOWN, "no replay met a non-finite value")
    if not autopsy.reproduced:
        return Certainty(Grade.LIKELY, "the replay did not repeat the step to the last bit")
    if autopsy.ablated and not autopsy.rivals:
        return Certainty(Grade.PROVEN, f"with zeros in place of its non-finite numbers, {_quiet(autopsy.clock)}")
    if finite_changes(autopsy):
        return Certainty(Grade.PROVEN, "with this operation changed, the step is finite")
    if autopsy.rivals:
        others = "another operation" if autopsy.rivals == 1 else f"{autopsy.rivals} other operations"
        only = f"only with zeros in place of what {others} made non-finite as well, {_quiet(autopsy.clock)}"
        return Certainty(Grade.PROVEN, f"this operation fails the step by itself; {only}")
    if autopsy.ablated is None:
        return Certainty(Grade.LIKELY, "the replay repeated the step to the last bit, but no experiment tested it")
    return Certainty(Grade.LIKELY, "with zeros in place of its non-finite numbers, the step still fails")


def mechanism_certainty(autopsy: Autopsy) -> Certainty:
    """How sure the mechanism is.

    proven: the origin is, and the change of the operation that treats this mechanism makes the step finite. unknown:
    no mechanism fits. likely: anything between, so a mechanism that is read off the numbers without such a change.
    """
    if autopsy.mechanism == mechanisms.UNKNOWN:
        return Certainty(Grade.UNKNOWN, "no known mechanism fits the numbers")
    if origin_certainty(autopsy).grade != Grade.PROVEN:
        return Certainty(Grade.LIKELY, "it fits the numbers, but the origin is not proven")
    if changes := finite_changes(autopsy) if autopsy.mechanism in _TESTED_BY_CHANGE else []:
        return Certainty(Grade.PROVEN, f"tested: {changes[0]}, and the step is finite")
    return Certainty(Grade.LIKELY, "it fits the numbers; no change of the operation tested it")


def _quiet(clock: str) -> str:
    """What is the case when a clock, `frozen` or `raised` included, does not trip."""
    known = {"frozen": "the gradient norm is finite", "raised": "the step raises no error"}
    return known.get(clock, f"the {clock.replace('_', ' ')} is finite")


def finite_changes(autopsy: Autopsy) -> list[str]:
    """The changes of the failing operation after which the step was finite."""
    return [trial.change for trial in autopsy.cures if trial.finite]
