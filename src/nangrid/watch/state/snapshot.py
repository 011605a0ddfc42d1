"""Holds, saves, loads and restores all that one optimizer step depends on, so that it can be run again exactly.

In memory, micro-batches are kept by reference. On disk a snapshot is safetensors and json, without pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nangrid.records.atomic import write_bytes
from nangrid.records.errors import InputError, RecordError
from nangrid.records.safety.files import open_regular, parse_json, read_bounded
from nangrid.records.start_from import FACTS, FACTS_BYTES
from nangrid.watch.state.module_state import ModuleState
from nangrid.watch.state.random_state import check_random_states
from nangrid.watch.state.tensors import copy_state

SCHEMA = 2
TENSORS = "snapshot.safetensors"
_OF_LIBRARIES = (RuntimeError, SafetensorError)
"""What torch and safetensors raise about damaged values."""

State = dict[str, dict[str, Any]]
"""Optimizer state by the name of the trainable."""


@dataclass
class MicroBatch:
    """One forward and backward pass: the model's inputs, and what else the step passes on."""

    inputs: Any
    extra: dict[str, Any] = field(default_factory=dict)
    restorers: Sequence[Callable[[], object]] = ()
    """Give the loop's own objects the state from before it; not saved."""


@dataclass
class Snapshot:
    """Everything the arithmetic of one optimizer step depends on, as it was before the step."""

    step: int
    parameters: dict[str, Tensor]
    state: State
    groups: list[dict[str, Any]]
    """The optimizer's param_groups without their parameters."""
    scaler: dict[str, Any]
    """The GradScaler's state_dict; empty without one."""
    module_state: ModuleState
    rng: dict[str, Any]
    micro_batches: list[MicroBatch]
    training: bool
    """False for an evaluation: forward passes alone."""
    clock: str
    """The clock that tripped in the live run, `frozen`, `raised`, or empty for a snapshot kept while all was finite."""
    outcome: dict[str, str]
    """sha256 of the live step's losses, gradients or parameters."""
    losses: list[float]
    """Losses of the steps before, as far as the run was watched."""
    initial: dict[str, Tensor]
    """The trainables before the first step of the run."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """Gradients that were there when the step began: of trainables that the optimizer does not hold."""

    def detached(self) -> Snapshot:
        """A copy that the next step does not overwrite."""

        def copied(part: Any) -> Any:
            return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), part)

        module_state = replace(
            self.module_state, buffers=copied(self.module_state.buffers), frozen=copied(self.module_state.frozen)
        )
        return replace(
            self,
            parameters=copied(self.parameters),
            state=copied(self.state),
            module_state=module_state,
            gradients=copied(self.gradients),
        )

    def save(self, directory: Path) -> None:
        """Write the two files, json last: a directory without the json holds no snapshot."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Tensor] = {}
        facts = {
            "schema": SCHEMA,
            "step": self.step,
            "training": self.training,
            "clock": self.clock,
            "outcome": self.outcome,
            "losses": self.losses,
            "initial": _strip(self.initial, "initial", tensors),
            "gradients": _strip(self.gradients, "gradients", tensors),
            "groups": _strip(self.groups, "groups", tensors),
            "scaler": _strip(self.scaler, "scaler", tensors),
            "state": _strip(self.state, "state", tensors),
            "buffers": _strip(self.module_state.buffers, "buffers", tensors),
            "modes": self.module_state.modes,
            "frozen": _strip(self.module_state.frozen, "frozen", tensors),
            "rng": _strip(self.rng, "rng", tensors),
            "parameters": _strip(self.parameters, "parameters", tensors),
            "micro_batches": [
                _strip({"inputs": batch.inputs, "extra": batch.extra}, f"micro_batch/{number}", tensors)
                for number, batch in enumerate(self.micro_batches)
            ],
        }
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        write_bytes(directory / TENSORS, content)
        write_bytes(directory / FACTS, json.dumps(facts).encode())

    @classmethod
    def load(cls, directory: Path) -> Snapshot:
        """Read a snapshot; InputError if there is none, or it is damaged or of another schema."""
        if not (directory / FACTS).exists():
            raise InputError(f"{directory} holds no snapshot: pass the directory of a cell that went non-finite.")
        try:
            facts = parse_json(read_bounded(directory / FACTS, FACTS_BYTES), constants=True)
            if facts["schema"] != SCHEMA:
                raise ValueError(f"its schema is {facts['schema']}, not {SCHEMA}")
            open_regular(directory / TENSORS).close()
            # the shapes cannot exceed the file: safetensors checks them against its length
            snapshot = cls._of(facts, load_file(directory / TENSORS))
            snapshot._check()
        except (ValueError, ArithmeticError, LookupError, TypeError, AttributeError, OSError, *_OF_LIBRARIES) as error:
            raise RecordError(f"the snapshot in {directory} cannot be read: {error}.") from error
        return snapshot

    def _check(self) -> None:
        """ValueError, or the error of a random generator, unless every part has the shape that a replay expects."""
        hints = {"step": int, "training": bool, "clock": str, "outcome": dict, "losses": list, "scaler": dict}
        for name, kind in hints.items():
            if type(getattr(self, name)) is not kind:
                raise ValueError(f"{name} is {getattr(self, name)!r:.60}, not {kind.__name__}")
        parts = (self.parameters, self.initial, self.module_state.buffers, self.module_state.frozen)
        if not all(isinstance(value, Tensor) for part in parts for value in part.values()):
            raise ValueError("a parameter or a buffer is no tensor")
        if not all(isinstance(part, dict) for part in [*self.groups, *self.state.values()]):
            raise ValueError("the optimizer's state or groups are no objects")
        if not all(isinstance(group.get("lr", 0.0), Tensor | int | float) for group in self.groups):
            raise ValueError("a learning rate is no number")
        if not all(isinstance(value, int | float) for value in self.scaler.values()):
            raise ValueError("a fact of its GradScaler is no number")
        if not self.micro_batches:
            raise ValueError("it has no batch")
        check_random_states(self.rng)

    @classmethod
    def _of(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Snapshot:
        return cls(
            step=facts["step"],
            training=facts["training"],
            clock=facts["clock"],
            outcome=facts["outcome"],
            losses=facts["losses"],
            initial=_fill(facts["initial"], tensors),
            gradients=_fill(facts.get("gradients", {}), tensors),
            groups=_fill(facts["groups"], tensors),
            scaler=_fill(facts["scaler"], tensors),
            state=_fill(facts["state"], tensors),
            module_state=ModuleState(
                _fill(facts["buffers"], tensors), facts.get("modes", {}), _fill(facts.get("frozen", {}), tensors)
            ),
            rng=_fill(facts["rng"], tensors),
            parameters=_fill(facts["parameters"], tensors),
            micro_batches=[MicroBatch(**_fill(batch, tensors)) for batch in facts["micro_batches"]],
        )


def _strip(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as json, with its tensors moved to `tensors` under names that tell where they were."""
    if isinstance(value, Tensor):
        tensors[name] = value.clone()
        return {"tensor": name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        exact = value if value.dtype.kind in "bf" else value.astype(np.int64)  # safetensors has no unsigned kinds
        tensors[name] = torch.from_numpy(np.array(exact))
        return {"array": name, "dtype": str(value.dtype)}
    if isinstance(value, Mapping):
        return {"mapping": {str(k): _strip(v, f"{name}/{k}", tensors) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return [_strip(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"unkept": f"{name} is a {type(value).__name__}"}


def _fill(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_strip`; ValueError for a value that could not be saved."""
    if isinstance(value, list):
        return [_fill(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        kind = np.dtype(value["dtype"])
        if kind.kind not in "biuf":
            raise ValueError(f"it holds an array of {kind}")
        return tensors[value["array"]].numpy().astype(kind)
    if "unkept" in value:
        raise ValueError(f"{value['unkept']}, which cannot be saved: pass tensors or numbers")
    # Older snapshots hold some mappings unwrapped.
    return {key: _fill(v, tensors) for key, v in value.get("mapping", value).items()}


@torch.no_grad()
def restore(
    trainables: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    state: State,
    groups: Iterable[Mapping[str, Any]],
) -> None:
    """Restore parameters, optimizer state and param_groups in place; state created since the snapshot is dropped."""
    for name, parameter in trainables.items():
        parameter.copy_(parameters[name])
        optimizer.state.pop(parameter, None)
        if name in state:
            saved = copy_state(state[name])
            optimizer.state[parameter] = {k: v.to(parameter.device) if _moves(k, v) else v for k, v in saved.items()}
    for live, group in zip(optimizer.param_groups, groups, strict=True):
        live.update({key: value for key, value in group.items() if key != "params"})


def _moves(key: str, value: Any) -> bool:
    # torch keeps `step` on the CPU unless the optimizer is capturable or fused
    return isinstance(value, Tensor) and key != "step"
