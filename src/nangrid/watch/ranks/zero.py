"""Presents DeepSpeed's ZeRO 1 and 2 as an optimizer of torch, and replays its step without the engine.

ZeRO trains flat float32 partitions. Each rank holds one, and the module a copy of all in its own dtype. The watch sees
the rank's part of every parameter under its name, with its gradient and optimizer state.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nangrid.watch.autopsy.replay import Step
from nangrid.watch.state.snapshot import Snapshot
from nangrid.watch.state.tensors import trainables

ENGINE = "DeepSpeedEngine"
_DEEPSPEED = "deepspeed"


class Fragment(nn.Parameter):
    """This rank's part of a parameter: a view of the flat partition, in float32."""

    _of: nn.Parameter
    _read: Tensor | None = None

    @classmethod
    def of(cls, parameter: nn.Parameter) -> Fragment:
        """The part of a parameter of the module."""
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        fragment = cls(mapping.hp_fragment.detach())
        fragment._of = parameter
        return fragment

    @property
    def address(self) -> slice:
        """Where it is in the flat partition."""
        address = self._of._hp_mapping.hp_fragment_address  # type: ignore[attr-defined]
        return slice(address.start, address.start + address.numel)

    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        """What the optimizer reads while it runs; before that, the gradient as far as it was reduced."""
        if self._read is not None:
            return self._read
        mapping: Any = self._of._hp_mapping  # type: ignore[attr-defined]
        if mapping.gradient_dict.get(mapping.param_group_index) is not None:
            reduced: Tensor = mapping.get_lp_grad_fragment(self._of._index_in_param_group)  # type: ignore[attr-defined]
            return reduced.flatten()
        own, address = self._of.grad, mapping.lp_fragment_address
        return None if own is None else own.flatten().narrow(0, address.start, address.numel)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._read = value


class LossScale:
    """The scale of DeepSpeed's losses, as a GradScaler would tell it; replays run with a scale of 1."""

    _scale = None
    """No tensor on a device."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    def get_scale(self) -> float:
        """The factor between a loss and the root of its backward pass."""
        return float(self._zero.loss_scale)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: DeepSpeed's step is not run again."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing, see `ZeroOptimizer.bare_engine`."""


class ZeroOptimizer:
    """The optimizer of an engine of DeepSpeed, with the fragments of this rank as its parameters."""

    found_inf = None
    """As a fused optimizer of torch, it skips a step by itself."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        named = trainables(engine.module)
        self.trainables: dict[str, nn.Parameter] = {
            name: Fragment.of(p) for name, p in named.items() if getattr(p, "_hp_mapping", None) is not None
        }
        groups = enumerate(engine.optimizer.bit16_groups)
        self._group_of = {id(parameter): number for number, group in groups for parameter in group}
        self._replayed: tuple[list[dict[str, Any]], MutableMapping[Tensor, Any]] | None = None
        """Groups and state while a step is replayed."""
        self._before: OrderedDict[int, Any] = OrderedDict()
        self._after: OrderedDict[int, Any] = OrderedDict()
        self._zero = engine.optimizer
        self.scale = LossScale(self._zero)
        self._step = self._zero.step
        self._zero.step = self._stepping
        self._zero.optimizer.register_step_pre_hook(self._reading)

    def _fragments(self) -> Iterator[Fragment]:
        return (fragment for fragment in self.trainables.values() if isinstance(fragment, Fragment))

    def _fragments_of(self, group: int) -> list[Fragment]:
        return [f for f in self._fragments() if f._of._hp_mapping.param_group_index == group]  # type: ignore[attr-defined]

    @property
    def grad_scale(self) -> Tensor | None:
        """What the gradients are multiplied by, as a fused optimizer of torch has it; None for 1."""
        scale = self.scale.get_scale()
        return None if scale == 1 else torch.tensor(scale)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the optimizer inside, with fragments in place of flat partitions."""
        if self._replayed is not None:
            return self._replayed[0]
        groups = enumerate(self._zero.optimizer.param_groups)
        return [{**group, "params": self._fragments_of(number)} for number, group in groups]

    @property
    def state(self) -> MutableMapping[Tensor, Any]:
        """The state of each fragment."""
        return self._replayed[1] if self._replayed is not None else _States(self._zero)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._zero.zero_grad()

    def register_step_pre_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """As an optimizer of torch."""
        handle = RemovableHandle(self._before)
        self._before[handle.id] = hook
        return handle

    def register_step_post_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """As an optimizer of torch."""
        handle = RemovableHandle(self._after)
        self._after[handle.id] = hook
        return handle

    def reached(self, *_: Any, **__: Any) -> None:
        """Run what is to run before a step."""
        for hook in list(self._before.values()):
            hook(self, (self,), {})

    def _stepping(self, *args: Any, **kwargs: Any) -> None:
        """The step of DeepSpeed's optimizer."""
        self.reached()
        self._step(*args, **kwargs)
        for hook in list(self._after.values()):
            hook(self, (self,), {})
        for fragment in self._fragments():
            fragment.grad = None

    def _reading(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Keep the clipped gradients that the optimizer inside is about to read."""
        # On a GPU a failing update is noticed too late to be replayed.
        for fragment in self._fragments():
            group = fragment._of._hp_mapping.param_group_index  # type: ignore[attr-defined]
            flat: Tensor = self._zero.single_partition_of_fp32_groups[group]
            if flat.grad is not None and flat.is_cpu:
                fragment.grad = flat.grad[fragment.address]

    def step(self) -> None:
        """Run the optimizer inside on the parameters of a replay."""
        optimizer = copy.copy(self._zero.optimizer)
        optimizer.param_groups, optimizer.state = self.param_groups, self.state
        type(optimizer).step(optimizer)

    @contextmanager
    def holding(self, parameters: Mapping[str, nn.Parameter], states: Mapping[str, dict[str, Any]]) -> Iterator[None]:
        """Within the block the optimizer holds other parameters than the fragments, with these states by name."""
        by_group: dict[int, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in trainables(self.engine.module).items():
            if name in parameters:
                by_group[self._group_of[id(parameter)]].append(parameters[name])
        groups = [{**group, "params": by_group[number]} for number, group in enumerate(self.param_groups)]
        self._replayed = groups, defaultdict(dict, {parameters[name]: state for name, state in states.items()})
        try:
            yield
        finally:
            self._replayed = None

    def gathered(self, fragments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of the module if each rank holds these fragments; all ranks must come here."""
        now = {name: fragment.detach().clone() for name, fragment in self.trainables.items()}
        self._set(fragments)
        whole = {name: parameter.detach().clone() for name, parameter in trainables(self.engine.module).items()}
        self._set(now)
        return whole

    @torch.no_grad()
    def _set(self, fragments: Mapping[str, Tensor]) -> None:
        for name, fragment in self.trainables.items():
            fragment.copy_(fragments[name])
        self._zero.update_lp_params()

    @contextmanager
    def bare_engine(self) -> Iterator[None]:
        """Within the block the engine computes gradients of this rank alone, and its step only reports."""
        scale = self._zero.loss_scale
        hooks = [(p, dict(p._post_accumulate_grad_hooks or {})) for p in trainables(self.engine.module).values()]
        with ExitStack() as stack:
            for name in ("_backward_prologue", "_backward_epilogue"):
                stack.enter_context(mock.patch.object(self.engine, name, lambda: None))
            stack.enter_context(mock.patch.object(self.engine, "step", self.reached))
            for parameter, all_hooks in hooks:
                for number, hook in all_hooks.items():
                    if _is_of_deepspeed(hook):
                        del parameter._post_accumulate_grad_hooks[number]
            self._zero.loss_scale = 1.0
            try:
                yield
            finally:
                self._zero.loss_scale = scale
                for parameter, all_hooks in hooks:
                    if all_hooks:
                        parameter._post_accumulate_grad_hooks.update(all_hooks)


def zero_of(step: Step) -> ZeroOptimizer | None:
    """The optimizer of a step, if it is ZeRO's."""
    return step.optimizer if isinstance(step.optimizer, ZeroOptimizer) else None


@contextmanager
def whole_parameters(step: Step, snapshot: Snapshot, zero: ZeroOptimizer, *, together: bool) -> Iterator[Snapshot]:
    """Within the block the step runs on the module's parameters, without the engine; yields their snapshot.

    `together`: whether all ranks come here. Otherwise nothing was updated since the step began.
    """
    fragments, modules = dict(step.trainables), trainables(step.model)
    if together:
        parameters = zero.gathered(snapshot.parameters)
        initial = zero.gathered(snapshot.initial) if snapshot.initial else {}
    else:
        parameters, initial = {name: p.detach().clone() for name, p in modules.items()}, {}
    _replace(step.trainables, modules)
    try:
        with zero.bare_engine(), zero.holding(modules, {}):
            yield replace(snapshot, parameters=parameters, initial=initial, state={})
    finally:
        _replace(step.trainables, fragments)


@contextmanager
def plain_fragments(step: Step, zero: ZeroOptimizer) -> Iterator[None]:
    """Within the block the step trains copies of the fragments, with the gradients that the optimizer has read."""
    fragments = dict(step.trainables)
    plain = {name: nn.Parameter(fragment.detach().clone()) for name, fragment in fragments.items()}
    for name, fragment in fragments.items():
        plain[name].grad = fragment.grad
    _replace(step.trainables, plain)
    try:
        with zero.holding(plain, {name: zero.state[fragment] for name, fragment in fragments.items()}):
            yield
    finally:
        _replace(step.trainables, fragments)


def _replace(trainables: dict[str, nn.Parameter], others: Mapping[str, nn.Parameter]) -> None:
    # In place, because clocks and recorder hold the same dict.
    trainables.clear()
    trainables.update(others)


class _States(MutableMapping[Tensor, Any]):
    """The state of each fragment, as views of that of the flat partitions."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    def __getitem__(self, fragment: Tensor) -> dict[str, Any]:
        if not isinstance(fragment, Fragment):
            raise KeyError(fragment)
        mapping: Any = fragment._of._hp_mapping  # type: ignore[attr-defined]
        flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
        state = self._zero.optimizer.state.get(flat, {})
        return {key: _part(value, flat, fragment.address) for key, value in state.items()}

    def values(self) -> Any:
        """The whole state of this rank, padding included."""
        return self._zero.optimizer.state.values()

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._zero.optimizer.state)

    def __len__(self) -> int:
        return len(self._zero.optimizer.state)

    def __setitem__(self, fragment: Tensor, state: Any) -> None:
        raise KeyError("the state of an engine of DeepSpeed is not replaced")

    def __delitem__(self, fragment: Tensor) -> None:
        raise KeyError(fragment)


def _part(value: Any, flat: Tensor, address: slice) -> Any:
    return value[address] if isinstance(value, Tensor) and value.shape == flat.shape else value


def _is_of_deepspeed(hook: Callable[..., Any]) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(_DEEPSPEED)
