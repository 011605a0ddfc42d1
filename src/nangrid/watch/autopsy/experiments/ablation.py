"""Runs the failing step with zeros in place of what the origin made non-finite: a test of the origin."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from nangrid.watch.autopsy.ablate import Ablation
from nangrid.watch.autopsy.replay import Replay, Step, batch_tensors, rerun
from nangrid.watch.state.snapshot import Snapshot


def quiet_without(step: Step, snapshot: Snapshot, replayed: Replay) -> tuple[bool | None, int | None]:
    """Whether the clock no longer trips then, and in place of how many other operations zeros were needed as well.

    None if there is no origin, or one whose values the snapshot lacks. The others each fail by themselves, as the
    origin does. A later clock may trip: the derivative of log at 0 is infinite even if the loss has a 0 in place of the
    -inf.
    """
    origin = replayed.origin
    if origin is None:
        return None, None

    def is_quiet(at: Collection[tuple[int, int]]) -> bool:
        return rerun(step, snapshot, Ablation(at)).clock != replayed.clock

    if origin.write.producer is not None:
        if is_quiet({origin.write.at}):
            return True, None
        if origin.rivals and is_quiet({origin.write.at, *origin.rivals}):
            return True, len(origin.rivals)
        return False, None
    cleaned = with_zeros(snapshot, origin.write.preexisting)
    return (None if cleaned is None else rerun(step, cleaned).clock != replayed.clock), None


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
