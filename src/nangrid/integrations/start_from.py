"""Resumes a Trainer in the middle of a run, bit for bit or under other levels.

Transformers resumes only from its own checkpoints, and only unchanged ones. For the duration of a resumed training its
loading methods are replaced, so that state can come from a snapshot of the watch, in other dtypes, or for another
optimizer.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from nangrid.integrations.checkpoint import check_checkpoint, check_numbers, check_schedule
from nangrid.integrations.optimizer_state import fitted_state
from nangrid.integrations.torch_file import load_pickle
from nangrid.records.errors import InputError
from nangrid.records.start_from import CHECKPOINT, Start
from nangrid.watch.state.optimizers import unwrapped
from nangrid.watch.state.random_state import random_states, set_random_states
from nangrid.watch.state.snapshot import Snapshot, restore
from nangrid.watch.state.tensors import param_groups, trainables

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"


def train_from(trainer: Trainer, start: Start) -> None:
    """`trainer.train()`, beginning with the step before which `start` was written.

    InputError, before anything is trained, if the trainer trains other parameters, cannot use the optimizer's state, or
    would read other data at that step.
    """
    if start.kind == CHECKPOINT:
        _train_from_checkpoint(trainer, start)
    else:
        _train_from_snapshot(trainer, start)


def _train_from_checkpoint(trainer: Trainer, start: Start) -> None:
    methods: dict[str, Callable[..., Any]] = {
        "_load_optimizer_and_scheduler": lambda folder: _fitted(start, lambda: _load_checkpoint(trainer, start))
    }
    _fitted(start, lambda: check_checkpoint(start.folder))
    if isinstance(trainer.model, PeftModel):
        methods["_load_from_checkpoint"] = lambda folder, *_: _load_adapter(trainer.model, folder)
    with patched(trainer, **methods), _explaining_mismatch(start):
        trainer.train(resume_from_checkpoint=str(start.folder))


def _train_from_snapshot(trainer: Trainer, start: Start) -> None:
    snapshot = Snapshot.load(start.folder)
    if not snapshot.training:
        raise InputError(
            f"{start.folder} belongs to an evaluation, which no run can resume from: give one in its kept/."
        )
    _require_same_trainables(trainables(trainer.model), snapshot)
    methods: dict[str, Callable[..., Any]] = {
        "_load_from_checkpoint": lambda *_, **__: None,
        "_load_rng_state": lambda *_: None,
        "_load_scaler": lambda *_: _load_scaler(trainer, snapshot),
        "_load_optimizer_and_scheduler": lambda *_: _fitted(start, lambda: _load_snapshot(trainer, snapshot)),
        "get_batch_samples": _checked_batches(trainer, snapshot),
    }
    restoring = _RestoreRandomStates(snapshot)
    # first of all callbacks, because the watch's records the random states of the step
    trainer.callback_handler.callbacks.insert(0, restoring)
    try:
        with patched(trainer, **methods), tempfile.TemporaryDirectory() as folder:
            _write_trainer_state(trainer, snapshot.step, Path(folder))
            trainer.train(resume_from_checkpoint=folder)
    finally:
        trainer.remove_callback(restoring)


@contextmanager
def patched(trainer: Trainer, **methods: Callable[..., Any]) -> Iterator[None]:
    """Replace methods of this trainer inside the block, and restore them on exit."""
    before = {name: vars(trainer)[name] for name in methods if name in vars(trainer)}
    vars(trainer).update(methods)
    try:
        yield
    finally:
        for name in methods:
            vars(trainer).pop(name, None)
        vars(trainer).update(before)


def _write_trainer_state(trainer: Trainer, step: int, folder: Path) -> None:
    """The file from which transformers takes the step to resume at, and the state of its callbacks."""
    stateful = [c for c in [*trainer.callback_handler.callbacks, trainer.control] if isinstance(c, ExportableState)]
    size = trainer._train_batch_size
    state = TrainerState(global_step=step, train_batch_size=size, stateful_callbacks=stateful)
    state.compute_steps(trainer.args, max(1, trainer.args.max_steps))
    state.save_to_json(str(folder / TRAINER_STATE_NAME))


class _RestoreRandomStates(TrainerCallback):
    """Restores the random states right before the first step, after everything that precedes it has drawn."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called before every step, but acts on the first one only."""
        if state.global_step == self.snapshot.step:
            states = dict(self.snapshot.rng)
            here = random_states()
            if len(states["cuda"]) != len(here["cuda"]):  # the run was made on another kind of machine
                states["cuda"] = here["cuda"]
            set_random_states(states)


def _load_snapshot(trainer: Trainer, snapshot: Snapshot) -> None:
    live, optimizer = trainables(trainer.model), unwrapped(trainer.optimizer)
    state = fitted_state(snapshot.state, snapshot.parameters, live, optimizer)
    _advance(trainer, snapshot.step)
    restore(live, optimizer, snapshot.parameters, state, _groups(optimizer, snapshot.groups))
    for name, buffer in trainer.model.named_buffers():
        saved = snapshot.module_state.buffers.get(name)
        if saved is not None and saved.shape == buffer.shape and saved.dtype == buffer.dtype:
            buffer.copy_(saved)


def _load_adapter(model: PeftModel, folder: str) -> None:
    """Load the adapter into the live parameters.

    PeftModel.load_adapter would make new ones, in float32 (peft 0.21, autocast_adapter_dtype). Frozen weights do not
    change: PEFT also saves an embedding that has an adapter.
    """
    if not any(Path(folder).glob("adapter_model.*")):
        raise InputError(f"{folder} holds no adapter_model.safetensors: give another start_from=.")
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    frozen |= {name.replace(".base_layer.", ".") for name in frozen}
    saved = {name: values for name, values in load_peft_weights(folder, device="cpu").items() if name not in frozen}
    set_peft_model_state_dict(model, saved, adapter_name=model.active_adapter)


def _load_checkpoint(trainer: Trainer, start: Start) -> None:
    """Load optimizer and schedule; the weights are in the model already, in its dtypes."""
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
        schedule = _read(start.folder / SCHEDULER)
        check_schedule(schedule)
        trainer.lr_scheduler.load_state_dict(schedule)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(
            f"{path} is missing, and without it no run can resume: save checkpoints with save_only_model=False."
        )
    return load_pickle(path)


def _unwrapped_state(state: dict[str, Any]) -> dict[str, Any]:
    """State as one flat dict. Bitsandbytes saves part of it one level deeper, to hide it from FSDP."""
    nested = [key for key, value in state.items() if isinstance(value, Mapping)]
    return {k: v for k, v in state.items() if k not in nested} | {k: v for n in nested for k, v in state[n].items()}


def _in_its_dtype(parameter: Tensor, state: Mapping[str, Any]) -> Tensor:
    mean = state.get("exp_avg")
    return parameter.to(mean.dtype) if isinstance(mean, Tensor) else parameter


def _groups(optimizer: torch.optim.Optimizer, saved: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The saved param_groups if the optimizer would make the same ones; else the optimizer's, with their new levels."""
    live = param_groups(optimizer)
    check_numbers(group["lr"] for group in saved if not isinstance(group["lr"], Tensor))
    made = [[{k: v for k, v in group.items() if k != "lr"} for group in groups] for groups in (live, saved)]
    return saved if json.loads(json.dumps(made[0])) == json.loads(json.dumps(made[1])) else live


def _advance(trainer: Trainer, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a scheduler step before the first optimizer step
        if not isinstance(trainer.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            for _ in range(steps):
                trainer.lr_scheduler.step()


def _load_scaler(trainer: Trainer, snapshot: Snapshot) -> None:
    if trainer.accelerator.scaler is not None and snapshot.scaler:
        trainer.accelerator.scaler.load_state_dict(snapshot.scaler)


def _checked_batches(trainer: Trainer, snapshot: Snapshot) -> Callable[..., Any]:
    """The trainer's get_batch_samples, which compares its first batches with those of the run at that step."""
    original = trainer.get_batch_samples
    expected = [_tensors(batch.inputs) for batch in snapshot.micro_batches]
    checked = False

    def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        batches, items = original(*args, **kwargs)
        if not checked and not _all_equal([_tensors(batch) for batch in batches], expected):
            raise InputError(
                f"the data at step {snapshot.step} differs from the data of the run at that step: "
                "use the same data, batch size, accumulation and seed."
            )
        checked = True
        return batches, items

    return get_batch_samples


def _tensors(batch: Any) -> list[Tensor]:
    values = [batch[key] for key in sorted(batch)] if isinstance(batch, Mapping) else batch
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _all_equal(batches: list[list[Tensor]], expected: list[list[Tensor]]) -> bool:
    if [len(batch) for batch in batches] != [len(batch) for batch in expected]:
        return False
    pairs = zip(chain.from_iterable(batches), chain.from_iterable(expected), strict=True)
    return all(a.shape == b.shape and torch.equal(a.cpu(), b.cpu().to(a.dtype)) for a, b in pairs)


def _require_same_trainables(live: Mapping[str, nn.Parameter], snapshot: Snapshot) -> None:
    for name in [*snapshot.parameters, *live]:
        saved, here = snapshot.parameters.get(name), live.get(name)
        shapes = ["none" if tensor is None else str(list(tensor.shape)) for tensor in (saved, here)]
        if shapes[0] != shapes[1]:
            raise InputError(_other_trainables(f"{name} of shape {shapes[0]}", shapes[1]))


def _other_trainables(was: str, is_now: str) -> str:
    return (
        f"the run trained {was}, but here it is {is_now}: targets, rank and vocabulary cannot change in the middle of "
        "a run. Train from the first step instead."
    )


def _fitted(start: Start, load: Callable[[], object]) -> None:
    """Load a part of the state; InputError if its values are not of the kinds and shapes that belong there."""
    try:
        load()
    except InputError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        why = str(error).splitlines()[0][:200] if str(error) else ""
        raise InputError(
            f"the state in {start.folder} does not fit this run ({type(error).__name__}: {why}): "
            "give another start_from=."
        ) from error


@contextmanager
def _explaining_mismatch(start: Start) -> Iterator[None]:
    try:
        yield
    except (UnpicklingError, SafetensorError) as error:
        raise InputError(f"the weights in {start.folder} cannot be loaded ({type(error).__name__}).") from error
    except RuntimeError as error:  # of torch or PEFT, with the shapes in its text
        if "size mismatch" in str(error):
            raise InputError(
                _other_trainables(f"other shapes ({start.folder})", str(error).splitlines()[-1])
            ) from error
        raise
