"""What does it take to run a step again exactly, in this process or on another day?

Before every step the trainables and the optimizer's state are copied into buffers that are allocated once; the
random states are noted; micro-batches are kept by reference. On disk: safetensors and json, no pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
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
from nangrid.watch.state.module_state import ModuleState
from nangrid.watch.state.tensors import copy_state

SCHEMA = 2
TENSORS, FACTS = "snapshot.safetensors", "snapshot.json"

State = dict[str, dict[str, Any]]
"""Optimizer state by the name of the trainable."""


@dataclass
class MicroBatch:
    """One forward and backward pass: the model's inputs, and what else the step passes on."""

    inputs: Any
    extra: dict[str, Any] = field(default_factory=dict)


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
    """The clock that rang in the live run, or `frozen`."""
    outcome: dict[str, str]
    """Digests of the live step's bits."""
    losses: list[float]
    """Of the steps before."""
    initial: dict[str, Tensor]
    """The trainables before the first step of the run."""

    def detached(self) -> Snapshot:
        """A copy that the next step does not overwrite."""

        def own(part: Any) -> Any:
            return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), part)

        around = replace(
            self.module_state, buffers=own(self.module_state.buffers), frozen=own(self.module_state.frozen)
        )
        return replace(self, parameters=own(self.parameters), state=own(self.state), module_state=around)

    def save(self, directory: Path) -> int:
        """Write the two files, json last; the size in bytes is returned."""
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
            "groups": _strip(self.groups, "groups", tensors),
            "scaler": _strip(self.scaler, "scaler", tensors),
            "state": _strip(self.state, "state", tensors),
            "buffers": _strip(self.module_state.buffers, "buffers", tensors),
            "modes": self.module_state.modes,
            "frozen": _strip(self.module_state.frozen, "frozen", tensors),
            "rng": _strip(self.rng, "rng", tensors),
            "parameters": _strip(self.parameters, "parameters", tensors),
            "micro_batches": [_strip(vars(b), f"micro_batch/{i}", tensors) for i, b in enumerate(self.micro_batches)],
        }
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        write_bytes(directory / TENSORS, content)
        write_bytes(directory / FACTS, json.dumps(facts).encode())
        return sum((directory / name).stat().st_size for name in (TENSORS, FACTS))

    @classmethod
    def load(cls, directory: Path) -> Snapshot:
        """Read a snapshot; InputError if there is none, or it is damaged or of another schema."""
        if not (directory / FACTS).exists():
            raise InputError(f"{directory} holds no snapshot: give the directory of a cell that went non-finite.")
        try:
            facts = json.loads((directory / FACTS).read_text())
            if facts["schema"] != SCHEMA:
                raise ValueError(f"its schema is {facts['schema']}, not {SCHEMA}")
            return cls._of(facts, load_file(directory / TENSORS))
        except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
            raise RecordError(f"the snapshot in {directory} cannot be read: {error}.") from error

    @classmethod
    def _of(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> Snapshot:
        return cls(
            step=facts["step"],
            training=facts["training"],
            clock=facts["clock"],
            outcome=facts["outcome"],
            losses=facts["losses"],
            initial=_fill(facts["initial"], tensors),
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
    """`value` as json, its tensors moved to `tensors` under names that say where they were."""
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
    """What `_strip` was given; ValueError for what it could not keep."""
    if isinstance(value, list):
        return [_fill(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        return tensors[value["array"]].numpy().astype(value["dtype"])
    if "unkept" in value:
        raise ValueError(f"{value['unkept']}, which is not kept: pass tensors or numbers")
    # older snapshots keep some mappings as they are
    return {key: _fill(v, tensors) for key, v in value.get("mapping", value).items()}


@torch.no_grad()
def restore(
    trainables: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    state: State,
    groups: Iterable[Mapping[str, Any]],
) -> None:
    """Put parameters and optimizer state back, in place; state that came later is dropped."""
    for name, parameter in trainables.items():
        parameter.copy_(parameters[name])
        optimizer.state.pop(parameter, None)
        if name in state:
            kept = {k: v.to(parameter.device) if _moves(k, v) else v for k, v in copy_state(state[name]).items()}
            optimizer.state[parameter] = kept
    for live, group in zip(optimizer.param_groups, groups, strict=True):
        live.update(group)


def _moves(key: str, value: Any) -> bool:
    # torch keeps `step` on the CPU unless the optimizer is capturable or fused
    return isinstance(value, Tensor) and key != "step"
