"""Names the mechanism of a failure by rules over the evidence; `unknown` if none applies.

The ids are in nangrid.records.mechanisms. Each rule explains what it saw; none fires on a symptom alone.
"""

from __future__ import annotations

from collections.abc import Callable

from nangrid.records.mechanisms import UNKNOWN
from nangrid.watch.autopsy.mechanism import forward, gradient, training
from nangrid.watch.autopsy.mechanism.evidence import Evidence, Mechanism

_RULES: tuple[Callable[[Evidence], Mechanism | None], ...] = (
    training.uninitialised,
    training.nonfinite_data,
    training.nonfinite_lr,
    training.frozen,
    forward.empty_labels,
    forward.dora,
    forward.masked_row,
    forward.double_mask,
    forward.mask_cast,
    forward.ctc_too_long,
    forward.mean_over_nothing,
    forward.zero_scale,
    gradient.log_of_zero,
    gradient.derivative_at_pole,
    gradient.optimizer_eps,
    forward.outside_domain,
    training.divergence,
    forward.exp_overflow,
    forward.half_activation,
    gradient.half_gradient,
    gradient.zero_row,
)
"""The more specific first."""


def name_mechanism(evidence: Evidence) -> Mechanism:
    """The mechanism of the first rule that fires."""
    for rule in _RULES:
        mechanism = rule(evidence)
        if mechanism is not None:
            return mechanism
    return Mechanism(UNKNOWN, "No known mechanism matches the evidence; start from the origin.")
