"""Makes a failing step one that this rank can run again without the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nangrid.watch.autopsy.replay import AFTER_UPDATE, EVALUATION, RAISED, NotRepeatableError, Step, repeating
from nangrid.watch.ranks.sharded import holding, is_sharded, whole
from nangrid.watch.ranks.zero import plain_fragments, whole_parameters, zero_of
from nangrid.watch.state.snapshot import MicroBatch, Snapshot
from nangrid.watch.state.tensors import local, present_gradients


@contextmanager
def alone(step: Step, snapshot: Snapshot, *, late: bool, together: bool) -> Iterator[tuple[Step, Snapshot]]:
    """Within the block, the yielded step runs on this rank alone.

    `late`: steps have followed since, so that the gradients of the failing one are gone. `together`: whether the other
    ranks do the same now.
    """
    if snapshot.clock not in AFTER_UPDATE:
        # Only ranks whose own evaluation failed examine it, with the parameters as they are.
        late, together = late and snapshot.clock != EVALUATION, together and snapshot.clock not in (RAISED, EVALUATION)
        with _whole(step, snapshot, late=late, together=together) as bare:
            yield step, bare
        return
    if late:
        raise NotRepeatableError("the gradients of all ranks, which the optimizer read, are gone.")
    with repeating(step, snapshot), _parts(step):
        gradients = {name: gradient.clone() for name, gradient in present_gradients(step.trainables).items()}
        yield _Update(step, gradients), replace(snapshot, initial={})


def _whole(step: Step, snapshot: Snapshot, *, late: bool, together: bool) -> AbstractContextManager[Snapshot]:
    """Within the block the model has whole parameters; yields the snapshot of those."""
    sharded, zero = is_sharded(step.model), zero_of(step)
    if not together and (sharded or (zero is not None and late)):
        raise NotRepeatableError("its parameters are spread over ranks that did not come to the failing step.")
    if zero is not None:
        return whole_parameters(step, snapshot, zero, together=together)
    return whole(step, snapshot) if sharded else nullcontext(snapshot)


def _parts(step: Step) -> AbstractContextManager[None]:
    """Within the block the step updates what this rank holds of the parameters, as plain tensors."""
    if (zero := zero_of(step)) is not None:
        return plain_fragments(step, zero)
    return _shards(step) if is_sharded(step.model) else nullcontext()


class _Update:
    """The update of a step, from the gradients of all ranks; implements nangrid.watch.autopsy.replay.Step."""

    def __init__(self, step: Step, gradients: Mapping[str, Tensor]) -> None:
        self.model = step.model
        self.trainables = step.trainables
        self.scaler = None
        """The gradients were unscaled before the optimizer read them."""
        self._step = step
        self._gradients = gradients

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the step."""
        return self._step.optimizer

    def forward_backward(self, micro_batch: MicroBatch) -> Tensor:
        """Nothing: the gradients of one rank are not those that the optimizer reads."""
        return torch.zeros(())

    def clip(self) -> Tensor:
        """Nothing: they are clipped."""
        return torch.zeros(())

    def update(self) -> None:
        """Run the optimizer on the gradients that it read in the live step."""
        for name, gradient in self._gradients.items():
            self.trainables[name].grad = gradient.clone()
        self._step.update()


@contextmanager
def _shards(step: Step) -> Iterator[None]:
    """Within the block, the optimizers hold the local parts of their parameters as plain tensors."""
    sharded = dict(step.trainables)
    plain = {name: nn.Parameter(local(parameter).detach()) for name, parameter in sharded.items()}
    of = {id(parameter): plain[name] for name, parameter in sharded.items()}
    optimizers: list[torch.optim.Optimizer] = getattr(step, "optimizers", [step.optimizer])
    states = [optimizer.state for optimizer in optimizers]
    try:
        for name, parameter in sharded.items():
            plain[name].grad = local(parameter.grad)
        for optimizer in optimizers:
            optimizer.state = defaultdict(dict, {of.get(id(p), p): _local(s) for p, s in optimizer.state.items()})
        step.trainables.update(plain)
        with holding(step.optimizer, of):
            yield
    finally:
        step.trainables.update(sharded)
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.state = state


def _local(state: Mapping[str, Any]) -> dict[str, Any]:
    return {key: local(value) for key, value in state.items()}
