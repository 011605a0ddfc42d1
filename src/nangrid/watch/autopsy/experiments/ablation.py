"""Runs the failing step with zeros in place of what the origin made non-finite: a test of the origin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from nangrid.watch.autopsy.ablate import Ablation
from nangrid.watch.autopsy.replay import Replay, Step, batch_tensors, rerun
from nangrid.watch.state.snapshot import Snapshot


def quiet_without(step: Step, snapshot: Snapshot, replayed: Replay) -> bool | None:
    """Whether the clock no longer trips then; None if there is no origin, or one whose values the snapshot lacks.

    A later clock may trip: the derivative of log at 0 is infinite even if the loss has a 0 in place of the -inf.
    """
    if replayed.origin is None:
        return None
    write = replayed.origin.write
    if write.producer is not None:
        return rerun(step, snapshot, Ablation({write.at})).clock != replayed.clock
    cleaned = with_zeros(snapshot, write.preexisting)
    return None if cleaned is None else rerun(step, cleaned).clock != replayed.clock


def with_zeros(snapshot: Snapshot, preexisting: str) -> Snapshot | None:
    """The snapshot, with zeros for the non-finite elements of a tensor that was non-finite before the step."""
    what, _, name = preexisting.partition(" ")
    if what == "parameter" and name in snapshot.parameters:
        parameters = {**snapshot.parameters, name: _finite(snapshot.parameters[name])}
        return replace(snapshot, parameters=parameters)
    buffers = snapshot.module_state.buffers
    if what == "buffer" and name in buffers:
        module_state = replace(snapshot.module_state, buffers={**buffers, name: _finite(buffers[name])})
        return replace(snapshot, module_state=module_state)
    tensor = dict(batch_tensors(snapshot)).get(preexisting)
    if tensor is None:
        return None

    def cleaned(value: Any) -> Any:
        return _finite(value) if value is tensor else value

    batches = [replace(batch, inputs=tree_map(cleaned, batch.inputs)) for batch in snapshot.micro_batches]
    return replace(snapshot, micro_batches=batches)


def _finite(tensor: Tensor) -> Tensor:
    return tensor.nan_to_num(0.0, 0.0, 0.0)
