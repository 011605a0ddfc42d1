"""Presents the engine of DeepSpeed's ZeRO 1 and 2 as an optimizer of torch, and replays its step without the engine."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nangrid.watch.autopsy.replay import Step
from nangrid.watch.ranks.fragments import Fragment, States, fragments
from nangrid.watch.state.snapshot import Snapshot
from nangrid.watch.state.tensors import trainables

ENGINE = "DeepSpeedEngine"
_DEEPSPEED = "deepspeed"
_ATTRIBUTE = "_nangrid"


class LossScale:
    """The scale of DeepSpeed's losses, with the part of a GradScaler that the watch reads."""

    _scale = None
    """No tensor on a device."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    def get_scale(self) -> float:
        """What a loss is multiplied by before its backward pass; 1 in a replay."""
        return float(self._zero.loss_scale)

    def state_dict(self) -> dict[str, Any]:
        """Nothing, because a replay sets the scale by itself."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


class ZeroOptimizer:
    """The optimizer of an engine, with this rank's fragments as its parameters.

    It has the part of torch.optim.Optimizer that the watch uses. Its step is that of DeepSpeed's optimizer, which
    clips, and skips steps with non-finite gradients as a fused optimizer of torch does.
    """

    found_inf = None

    @classmethod
    def of(cls, engine: Any) -> ZeroOptimizer:
        """The one of an engine: its step is wrapped once."""
        if _ATTRIBUTE not in vars(engine.optimizer):
            setattr(engine.optimizer, _ATTRIBUTE, cls(engine))
        return cast(ZeroOptimizer, getattr(engine.optimizer, _ATTRIBUTE))

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._zero = engine.optimizer
        self.trainables = fragments(engine.module)
        self.scale = LossScale(self._zero)
        self._states = States(self.trainables.values(), self._zero)
        groups = {id(p): number for number, group in enumerate(self._zero.bit16_groups) for p in group}
        named = trainables(engine.module).items()
        self._group_of = {name: groups[id(p)] for name, p in named if id(p) in groups}
        """The index of its group, by the name of each parameter that the optimizer trains."""
        self._replayed: tuple[list[dict[str, Any]], MutableMapping[Tensor, Any]] | None = None
        """Groups and state while a step is replayed."""
        self._before: OrderedDict[int, Any] = OrderedDict()
        self._after: OrderedDict[int, Any] = OrderedDict()
        self._step = self._zero.step
        self._zero.step = self._stepping
        self._zero.optimizer.register_step_pre_hook(self._reading)

    @property
    def grad_scale(self) -> Tensor | None:
        """What the gradients are multiplied by; None for 1."""
        scale = self.scale.get_scale()
        return None if scale == 1 else torch.tensor(scale)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, with fragments in place of flat partitions."""
        return self._groups(self.trainables) if self._replayed is None else self._replayed[0]

    def _groups(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """The optimizer's groups, with these parameters by name."""
        held = defaultdict(list)
        for name, parameter in parameters.items():
            if name in self._group_of:
                held[self._group_of[name]].append(parameter)
        return [{**group, "params": held[number]} for number, group in enumerate(self._zero.optimizer.param_groups)]

    @property
    def state(self) -> Mapping[Tensor, Any]:
        """The state of each parameter."""
        return self._states if self._replayed is None else self._replayed[1]

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call `hook(optimizer, args, kwargs)` before each step."""
        return _registered(hook, self._before)

    def register_step_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """Call `hook(optimizer, args, kwargs)` after each step."""
        return _registered(hook, self._after)

    def step(self) -> None:
        """Run the optimizer inside on the parameters of a replay."""
        optimizer = copy.copy(self._zero.optimizer)
        optimizer.param_groups, optimizer.state = self.param_groups, self.state
        type(optimizer).step(optimizer)

    def _stepping(self, *args: Any, **kwargs: Any) -> None:
        self._reached()
        self._step(*args, **kwargs)
        for hook in list(self._after.values()):
            hook(self, (self,), {})
        for fragment in self.trainables.values():
            fragment.grad = None

    def _reached(self, *_: Any, **__: Any) -> None:
        for hook in list(self._before.values()):
            hook(self, (self,), {})

    def _reading(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Keep the clipped gradients that the optimizer inside is about to read, for one group at a time."""
        # On a GPU a failing update is noticed too late to be replayed.
        for fragment in cast(list[Fragment], list(self.trainables.values())):
            flat: Tensor = self._zero.single_partition_of_fp32_groups[fragment.group]
            if flat.grad is not None and flat.is_cpu:
                fragment.grad = flat.grad[fragment.place]

    @contextmanager
    def holding(self, parameters: Mapping[str, nn.Parameter], states: Mapping[str, dict[str, Any]]) -> Iterator[None]:
        """Within the block the optimizer holds other parameters than the fragments, with these states by name."""
        state = defaultdict(dict, {cast(Tensor, parameters[name]): state for name, state in states.items()})
        self._replayed = self._groups(parameters), state
        try:
            yield
        finally:
            self._replayed = None

    def gathered(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The module's parameters if the ranks' fragments had these values; all ranks must come here."""
        now = {name: fragment.detach().clone() for name, fragment in self.trainables.items()}
        self._set(values)
        whole = {name: parameter.detach().clone() for name, parameter in trainables(self.engine.module).items()}
        self._set(now)
        return whole

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.trainables[name].copy_(value)
        self._zero.update_lp_params()

    @contextmanager
    def bare_engine(self) -> Iterator[None]:
        """Within the block the engine leaves this rank's own gradients to the parameters, and takes no step."""
        scale = self._zero.loss_scale
        with ExitStack() as stack:
            for name in ("_backward_prologue", "_backward_epilogue"):
                stack.enter_context(mock.patch.object(self.engine, name, lambda: None))
            stack.enter_context(mock.patch.object(self.engine, "step", self._reached))
            stack.enter_context(_without_hooks(trainables(self.engine.module).values()))
            self._zero.loss_scale = 1.0
            try:
                yield
            finally:
                self._zero.loss_scale = scale


def _registered(hook: Callable[..., Any], hooks: OrderedDict[int, Any]) -> RemovableHandle:
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


@contextmanager
def _without_hooks(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within the block the parameters have none of DeepSpeed's hooks, which exchange gradients."""
    hooks: list[dict[int, Any]] = [p._post_accumulate_grad_hooks or {} for p in parameters]  # type: ignore[attr-defined]
    before = list(map(dict, hooks))
    for each in hooks:
        for number in [n for n, hook in each.items() if str(hook.__module__).startswith(_DEEPSPEED)]:
            del each[number]
    try:
        yield
    finally:
        for each, all_hooks in zip(hooks, before, strict=True):
            each.update(all_hooks)


def zero_of(step: Step) -> ZeroOptimizer | None:
    """The optimizer of a step, if it is ZeRO's."""
    return step.optimizer if isinstance(step.optimizer, ZeroOptimizer) else None


@contextmanager
def whole_parameters(step: Step, snapshot: Snapshot, zero: ZeroOptimizer, *, together: bool) -> Iterator[Snapshot]:
    """Within the block the step runs on the module's parameters, without the engine; yields their snapshot.

    `together`: whether all ranks come here. Otherwise nothing was updated since the step began.
    """
    held, whole = dict(step.trainables), trainables(step.model)
    if together:
        parameters = zero.gathered(snapshot.parameters)
        initial = zero.gathered(snapshot.initial)  # by all ranks, although one without a fragment knows none
        initial = initial if snapshot.initial else {}
    else:
        parameters, initial = {name: parameter.detach().clone() for name, parameter in whole.items()}, {}
    _replace(step.trainables, whole)
    try:
        with zero.bare_engine(), zero.holding(whole, {}):
            yield replace(snapshot, parameters=parameters, initial=initial, state={})
    finally:
        _replace(step.trainables, held)


@contextmanager
def plain_fragments(step: Step, zero: ZeroOptimizer) -> Iterator[None]:
    """Within the block the step trains copies of the fragments, with the gradients that the optimizer has read."""
    held = dict(step.trainables)
    plain = {name: nn.Parameter(fragment.detach().clone()) for name, fragment in held.items()}
    for name, fragment in held.items():
        plain[name].grad = fragment.grad
    _replace(step.trainables, plain)
    try:
        with zero.holding(plain, {name: zero.state[fragment] for name, fragment in held.items()}):
            yield
    finally:
        _replace(step.trainables, held)


def _replace(trainables: dict[str, nn.Parameter], others: Mapping[str, nn.Parameter]) -> None:
    # In place, because clocks and recorder hold the same dict.
    trainables.clear()
    trainables.update(others)
