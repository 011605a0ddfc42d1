"""Copies, before every step, what a snapshot of that step needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nangrid.watch.state.module_state import ModuleState, ModuleStateRecorder, copy_buffers
from nangrid.watch.state.random_state import random_states
from nangrid.watch.state.scaler import as_numbers, state_of
from nangrid.watch.state.snapshot import MicroBatch, Snapshot, State
from nangrid.watch.state.tensors import add_new_trainables, copy_state, local, param_groups


@dataclass(frozen=True)
class SnapshotPolicy:
    """How often snapshots are kept while all is finite, and what the run started from."""

    every: int = 0
    """Keep a snapshot on disk every so many steps, to start a run from; 0: none. Only the last two stay."""
    initial: dict[str, Tensor] | None = None
    """The trainables before the run's first step, if watching began at a later one."""
    light: bool = False
    """Keep no copy of parameters and optimizer state; a failure in the optimizer is then not replayed."""


@dataclass(frozen=True)
class FailedEvalBatch:
    """An evaluation batch whose loss is non-finite, and the random states from before it."""

    inputs: Any
    rng: dict[str, Any]
    loss: Tensor


class Recorder:
    """Holds what a snapshot of the current step needs, at the cost of one copy of the trainables per step."""

    def __init__(
        self,
        model: nn.Module,
        trainables: dict[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
        initial: dict[str, Tensor] | None = None,
        light: bool = False,
    ) -> None:
        """`trainables` may grow during the run; `initial`: their values before the run's first step, if known.

        `light`: copy neither parameters nor optimizer state. Until the optimizer runs, the live ones are those of the
        snapshot.
        """
        self.light = light
        self.model = model
        self.trainables = trainables
        self.optimizer = optimizer
        self.scaler = scaler
        self.initial = initial if initial is not None else {}
        self._parameters: dict[str, Tensor] = {}
        self._module_state = ModuleStateRecorder(model)
        self._state: State = {}
        self._rng: dict[str, Any] = {}
        self._gradients: dict[str, Tensor] = {}
        self._groups: list[dict[str, Any]] = []
        self._scaler: dict[str, Any] = {}
        self._step = 0
        self._micro_batches: list[MicroBatch] = []
        self.copy_new_trainables()

    def before(self, trainables: Iterable[str] | None = None) -> list[Tensor] | None:
        """These trainables, or all, as they were before the step, in their order; None if they were not copied."""
        names = self.trainables if trainables is None else trainables
        return None if self.light else [self._parameters[name] for name in names]

    @torch.no_grad()
    def begin(self, step: int) -> None:
        """Copy everything that step number `step` will change."""
        self._step = step
        self.copy_new_trainables()
        self.restart()
        if self.light:
            return
        # One fused copy into buffers that are allocated once.
        torch._foreach_copy_(list(self._parameters.values()), list(map(local, self.trainables.values())))
        for name, parameter in self.trainables.items():
            live = self.optimizer.state.get(parameter)
            if live:
                self._state[name] = copy_state(live, self._state.get(name, {}))

    @torch.no_grad()
    def restart(self) -> None:
        """Forget the micro-batches so far; parameters and optimizer state have not changed since the step began."""
        self._micro_batches, self._rng = [], random_states()
        self._groups = param_groups(self.optimizer)
        self._scaler = state_of(self.scaler)
        self._module_state.copy()
        # The loop zeroes the gradients of what the optimizer holds; others accumulate from step to step.
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        others = {n: local(p.grad) for n, p in self.trainables.items() if p.grad is not None and id(p) not in held}
        self._gradients = {name: gradient.clone() for name, gradient in others.items() if gradient is not None}

    @torch.no_grad()
    def copy_new_trainables(self) -> None:
        """Copy trainables added during the step; until the optimizer runs they have the values from before it."""
        add_new_trainables(self.model, self.optimizer, self.trainables)
        if self.light:
            return
        for name, parameter in self.trainables.items():
            if name not in self._parameters:
                self._parameters[name] = local(parameter).detach().clone()
                self.initial.setdefault(name, local(parameter).detach().clone())

    def micro_batch(self, inputs: Any, restorers: Sequence[Callable[[], object]] = (), **extra: Any) -> None:
        """Keep a micro-batch that is about to run; see MicroBatch."""
        self._micro_batches.append(MicroBatch(shallow(inputs), extra, restorers))

    def snapshot(self, clock: str, outcome: dict[str, str], losses: list[float]) -> Snapshot:
        """A snapshot of the current step; its tensors are overwritten by the next `begin`."""
        parameters, state = self._live() if self.light else (self._parameters, self._state)
        return Snapshot(
            step=self._step,
            parameters=parameters,
            state=state,
            groups=self._groups,
            scaler=as_numbers(self._scaler),
            module_state=self._module_state.now(),
            rng=self._rng,
            micro_batches=self._micro_batches,
            training=self.model.training,
            clock=clock,
            outcome=outcome,
            losses=losses,
            initial=self.initial,
            gradients=self._gradients,
        )

    def _live(self) -> tuple[dict[str, Tensor], State]:
        parameters = {name: local(parameter).detach() for name, parameter in self.trainables.items()}
        state = {name: self.optimizer.state.get(parameter) for name, parameter in self.trainables.items()}
        return parameters, {name: {k: local(v) for k, v in entry.items()} for name, entry in state.items() if entry}

    def evaluation(self, failed: FailedEvalBatch, outcome: dict[str, str], losses: list[float]) -> Snapshot:
        """A snapshot of one evaluation batch after the current step, with the parameters as they are now."""
        return replace(
            self.snapshot("eval_loss", outcome, losses),
            parameters={name: local(p).detach().clone() for name, p in self.trainables.items()},
            module_state=ModuleState(copy_buffers(self.model)),
            gradients={},
            rng=failed.rng,
            micro_batches=[MicroBatch(shallow(failed.inputs))],
            training=False,
        )


def shallow(inputs: Any) -> Any:
    """A copy of the container of a micro-batch, so that a step may pop entries; the tensors are shared."""
    return copy.copy(inputs) if isinstance(inputs, Mapping | list) else inputs
