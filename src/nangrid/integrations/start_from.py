"""How does a Trainer go on from the middle of a run, to the bit, or under other levels?

Transformers resumes from its own checkpoints alone, and only as they were. What it loads is put aside here and loaded
another way where need be: from a snapshot of the watch, into other dtypes, into another optimizer.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from nangrid.integrations.optimizer_state import fitted_state
from nangrid.integrations.trainer import unwrapped
from nangrid.records.errors import InputError
from nangrid.records.start_from import CHECKPOINT, Start
from nangrid.watch.state.random_state import random_states, set_random_states
from nangrid.watch.state.snapshot import Snapshot, restore
from nangrid.watch.state.tensors import param_groups, trainables

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"


def train_from(trainer: Trainer, start: Start) -> None:
    """`trainer.train()` from the step on that `start` was made before.

    InputError, before anything is trained, if the trainer trains other parameters, has no use for the optimizer's
    state, or would read other data at that step.
    """
    if start.kind == CHECKPOINT:
        if isinstance(trainer.model, PeftModel):
            trainer._load_from_checkpoint = lambda folder, *_: _load_adapter(trainer.model, folder)
        trainer._load_optimizer_and_scheduler = lambda folder: _load_checkpoint(trainer, start)
        with _saying_what_differs(start):
            trainer.train(resume_from_checkpoint=str(start.folder))
        return
    snapshot = Snapshot.load(start.folder)
    if not snapshot.training:
        raise InputError(f"{start.folder} is of an evaluation, and no run goes on from one: give one in its kept/.")
    _require_same_trainables(trainables(trainer.model), snapshot)
    trainer._load_from_checkpoint = lambda *_, **__: None
    trainer._load_rng_state = lambda *_: None
    trainer._load_scaler = lambda *_: _load_scaler(trainer, snapshot)
    trainer._load_optimizer_and_scheduler = lambda *_: _load_snapshot(trainer, snapshot)
    _checking_the_data(trainer, snapshot)
    # before the watch's: it notes the random states of the step
    trainer.callback_handler.callbacks.insert(0, _Drawing(snapshot))
    with tempfile.TemporaryDirectory() as folder:
        kept = [c for c in [*trainer.callback_handler.callbacks, trainer.control] if isinstance(c, ExportableState)]
        size = trainer._train_batch_size
        state = TrainerState(global_step=snapshot.step, train_batch_size=size, stateful_callbacks=kept)
        state.compute_steps(trainer.args, max(1, trainer.args.max_steps))
        state.save_to_json(str(Path(folder) / TRAINER_STATE_NAME))
        trainer.train(resume_from_checkpoint=folder)


class _Drawing(TrainerCallback):
    """Puts the random states back right before the first step, when all that comes before it has been drawn."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Of the first step only."""
        if state.global_step == self.snapshot.step:
            states = dict(self.snapshot.rng)
            here = random_states()
            if len(states["cuda"]) != len(here["cuda"]):  # the run was on another kind of machine
                states["cuda"] = here["cuda"]
            set_random_states(states)


def _load_snapshot(trainer: Trainer, snapshot: Snapshot) -> None:
    live, optimizer = trainables(trainer.model), unwrapped(trainer.optimizer)
    state = fitted_state(snapshot.state, snapshot.parameters, live, optimizer)
    _advance(trainer, snapshot.step)
    restore(live, optimizer, snapshot.parameters, state, _groups(optimizer, snapshot.groups))
    for name, buffer in trainer.model.named_buffers():
        kept = snapshot.module_state.buffers.get(name)
        if kept is not None and kept.shape == buffer.shape and kept.dtype == buffer.dtype:
            buffer.copy_(kept)


def _load_adapter(model: PeftModel, folder: str) -> None:
    """Into the live parameters: PeftModel.load_adapter makes new ones, in float32 (peft 0.21, autocast_adapter_dtype).

    What is frozen stays as it is here: where an embedding has an adapter PEFT saves the embedding, too.
    """
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    frozen |= {name.replace(".base_layer.", ".") for name in frozen}
    saved = {name: values for name, values in load_peft_weights(folder, device="cpu").items() if name not in frozen}
    set_peft_model_state_dict(model, saved, adapter_name=model.active_adapter)


def _load_checkpoint(trainer: Trainer, start: Start) -> None:
    """Optimizer and schedule; the weights are in the model already, in its own dtypes."""
    live, optimizer = trainables(trainer.model), unwrapped(trainer.optimizer)
    saved = _read(start.folder / OPTIMIZER)
    names = {id(p): name for name, p in live.items()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    if len(order) != len(numbers):
        raise InputError(_other_trainables(f"{len(numbers)} parameters", f"{len(order)}"))
    by_name = dict(zip(order, numbers, strict=True))
    state = {n: _unwrapped_state(saved["state"][i]) for n, i in by_name.items() if i in saved["state"]}
    here = {name: p.detach().clone() for name, p in live.items()}
    # torch's state is in the dtype that the parameter had
    before = {name: _in_its_dtype(here[name], state.get(name, {})) for name in live}
    saved_groups = [{key: value for key, value in group.items() if key != "params"} for group in saved["param_groups"]]
    fitted = fitted_state(state, before, live, optimizer)
    _advance(trainer, start.step)
    groups = _groups(optimizer, saved_groups)
    restore(live, optimizer, here, fitted, groups)
    if groups is saved_groups:
        trainer.lr_scheduler.load_state_dict(_read(start.folder / SCHEDULER))


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} is missing, the run cannot go on without: save with save_only_model=False.")
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped_state(state: dict[str, Any]) -> dict[str, Any]:
    """Bitsandbytes saves part of its state one level further down, out of FSDP's sight."""
    nested = [key for key, value in state.items() if isinstance(value, Mapping)]
    return {k: v for k, v in state.items() if k not in nested} | {k: v for n in nested for k, v in state[n].items()}


def _in_its_dtype(parameter: Tensor, state: Mapping[str, Any]) -> Tensor:
    kept = state.get("exp_avg")
    return parameter.to(kept.dtype) if isinstance(kept, Tensor) else parameter


def _groups(optimizer: torch.optim.Optimizer, kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups as they were, if the optimizer would have made the same; else its own, with their new levels."""
    live = param_groups(optimizer)
    made = [[{k: v for k, v in group.items() if k != "lr"} for group in groups] for groups in (live, kept)]
    return kept if json.loads(json.dumps(made[0])) == json.loads(json.dumps(made[1])) else live


def _advance(trainer: Trainer, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no optimizer step came before
        if not isinstance(trainer.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            for _ in range(steps):
                trainer.lr_scheduler.step()


def _load_scaler(trainer: Trainer, snapshot: Snapshot) -> None:
    if trainer.accelerator.scaler is not None and snapshot.scaler:
        trainer.accelerator.scaler.load_state_dict(snapshot.scaler)


def _checking_the_data(trainer: Trainer, snapshot: Snapshot) -> None:
    """Have the first batches compared with those that the run had at that step."""
    original = trainer.get_batch_samples
    wanted = [_leaves(batch.inputs) for batch in snapshot.micro_batches]

    def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
        batches, items = original(*args, **kwargs)
        trainer.get_batch_samples = original
        found = [_leaves(batch) for batch in batches]
        if len(found) != len(wanted) or not all(map(_equal, found, wanted)):
            raise InputError(
                f"the data at step {snapshot.step} is not what the run had there: "
                "start with its own data, batch size, accumulation and seed."
            )
        return batches, items

    trainer.get_batch_samples = get_batch_samples


def _leaves(batch: Any) -> list[Tensor]:
    values = [batch[key] for key in sorted(batch)] if isinstance(batch, Mapping) else batch
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _equal(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        a.shape == b.shape and torch.equal(a.cpu(), b.cpu().to(a.dtype)) for a, b in zip(found, wanted, strict=True)
    )


def _require_same_trainables(live: Mapping[str, nn.Parameter], snapshot: Snapshot) -> None:
    for name in [*snapshot.parameters, *live]:
        kept, here = snapshot.parameters.get(name), live.get(name)
        shapes = ["none" if tensor is None else str(list(tensor.shape)) for tensor in (kept, here)]
        if shapes[0] != shapes[1]:
            raise InputError(_other_trainables(f"{name} of shape {shapes[0]}", shapes[1]))


def _other_trainables(was: str, is_now: str) -> str:
    return (
        f"the run trained {was} and here it is {is_now}: what is trained (targets, rank, vocabulary) cannot change "
        "in the middle of a run, train from the first step instead."
    )


@contextmanager
def _saying_what_differs(start: Start) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's and PEFT's own, with shapes
        if "size mismatch" in str(error):
            raise InputError(
                _other_trainables(f"other shapes ({start.folder})", str(error).splitlines()[-1])
            ) from error
        raise
