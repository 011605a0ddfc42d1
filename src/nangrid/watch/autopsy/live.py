"""Reads off the live model which tensors hold non-finite values, for a step that no replay explains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nangrid.records.autopsy import Autopsy
from nangrid.records.mechanisms import UNKNOWN
from nangrid.watch.autopsy.replay import AFTER_UPDATE, Step, named_state, nonfinite, updated
from nangrid.watch.state.snapshot import Snapshot
from nangrid.watch.state.tensors import extent, gradients, is_finite, local, rounds_to_zero

MOST_NAMED = 4


@dataclass(frozen=True)
class LiveStep:
    """What the live step left: names of affected trainables, and one sentence per kind of tensor."""

    parameters: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)


def read_live_step(step: Step, clock: str) -> LiveStep:
    """The tensors that are non-finite now, right after the clock tripped."""
    found = gradients(updated(step))
    # After an update, ranks of ZeRO hold copies of what others have updated.
    others = {} if clock in AFTER_UPDATE else dict(step.model.named_parameters())
    bad = {
        "gradients": nonfinite(found),
        "parameters": nonfinite(others | step.trainables),
        "buffers": {name: b for name, b in step.model.named_buffers() if not is_finite(b)},
        "optimizer state": nonfinite({f"{key} of {name}": value for name, key, value in named_state(step)}),
    }
    evidence = [f"non-finite {kind} in the live step: {_named(tensors)}" for kind, tensors in bad.items() if tensors]
    if clock in AFTER_UPDATE:
        evidence += _before_the_update(step, found)
    return LiveStep(list(bad["parameters"] if clock in AFTER_UPDATE else bad["gradients"]), evidence)


def unreplayed(snapshot: Snapshot, why: str, live: LiveStep) -> Autopsy:
    """An autopsy of what the live step showed alone."""
    # Gradients and parameters were finite before the update, so that only the optimizer can have made the number.
    phase = "optimizer" if snapshot.clock in AFTER_UPDATE else UNKNOWN
    return Autopsy(
        step=snapshot.step,
        clock=snapshot.clock,
        phase=phase,
        kind=UNKNOWN,
        op="",
        module="",
        source="",
        node="",
        micro_batch=0,
        dtype="",
        dtype_max=0.0,
        inputs=[],
        output=None,
        path=[],
        tokens=[],
        parameters=live.parameters,
        mechanism=UNKNOWN,
        explanation=why,
        evidence=live.evidence,
        suggestions=[],
        reproduced=False,
        untrained=None,
    )


def _named(tensors: Mapping[str, Tensor]) -> str:
    counts = [_counted(name, local(tensor)) for name, tensor in tensors.items()]
    return ", ".join(counts[:MOST_NAMED]) + f" and {len(counts) - MOST_NAMED} more" * (len(counts) > MOST_NAMED)


def _counted(name: str, tensor: Tensor) -> str:
    return f"{name} ({int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} elements)"


def _before_the_update(step: Step, found: Mapping[str, Tensor]) -> Iterator[str]:
    largest = float(extent(found.values()))
    yield f"the gradients before the update were finite, up to {largest:.4g}"
    for group in step.optimizer.param_groups:
        eps, dtypes = group.get("eps"), {parameter.dtype for parameter in group["params"]}
        if isinstance(eps, float) and any(rounds_to_zero(eps, dtype) for dtype in dtypes):
            yield f"eps {eps:g} of the optimizer is 0 in the dtype of its parameters"
