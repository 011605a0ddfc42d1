"""Runs the failing step with zeros in place of what the origin made non-finite: a test of the origin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from nangrid.watch.autopsy.ablate import Ablation, Writes
from nangrid.watch.autopsy.origin import Origin
from nangrid.watch.autopsy.replay import Replay, Step, batch_tensors, replay, rerun
from nangrid.watch.state.snapshot import Snapshot

MOST_ROUNDS = 3
"""Times that operations are sought which fail the step without the origin."""


def quiet_without(step: Step, snapshot: Snapshot, replayed: Replay) -> tuple[bool | None, int | None]:
    """Whether the clock no longer trips then, and in place of how many other operations zeros were needed as well.

    None if there is no origin, or one whose values the snapshot lacks. The others each fail by themselves, as the
    origin does. A later clock may trip: the derivative of log at 0 is infinite even if the loss has a 0 in place of the
    -inf.
    """
    origin = replayed.origin
    if origin is None:
        return None, None
    if origin.write.producer is not None:
        return _quiet_without_rivals(step, snapshot, replayed.clock, origin)
    cleaned = with_zeros(snapshot, origin.write.preexisting)
    return (None if cleaned is None else rerun(step, cleaned).clock != replayed.clock), None


def _quiet_without_rivals(step: Step, snapshot: Snapshot, clock: str | None, origin: Origin) -> tuple[bool, int | None]:
    def is_quiet(writes: Writes) -> bool:
        return rerun(step, snapshot, Ablation(writes)).clock != clock

    at, rivals = {origin.write.at}, set(origin.rivals)
    if is_quiet(at):
        return True, None
    for _ in range(MOST_ROUNDS):
        if rivals and is_quiet(at | rivals):
            return (False, None) if is_quiet(rivals) else (True, len(rivals))
        other = replay(step, snapshot, at | rivals).origin
        if other is None or other.write.producer is None:
            break
        rivals |= {other.write.at, *other.rivals}
    return False, None


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
