"""A run resumed in the middle is the same run to the last bit, and under other levels it loses no step."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from nangrid.cell.model.tiny import tiny_gemma
from nangrid.integrations import train_from, watch_trainer
from nangrid.records.errors import InputError
from nangrid.records.start_from import find_start
from nangrid.watch import StepReading

STEPS, SAVED = 9, 4
SAMPLES = 12
"""In batches of 2: the run is in its second epoch at step 6."""
ADAMS = ["adamw_torch", "adamw_bnb_8bit", "paged_adamw_32bit"]


def make(out: Path, rank: int = 4, dtype: torch.dtype = torch.float32, **changes: Any) -> Trainer:
    """A script as users write it, with dropout, so that every random draw counts."""
    transformers.set_seed(3)
    model = AutoModelForCausalLM.from_pretrained(tiny_gemma(2), dtype=dtype)
    lora = LoraConfig(r=rank, target_modules=["q_proj", "v_proj", "down_proj", "embed_tokens"], lora_dropout=0.2)
    model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    rows = torch.randint(4, 1000, (SAMPLES, 16), generator=torch.Generator().manual_seed(1)).tolist()
    settings: dict[str, Any] = {
        "output_dir": str(out / "out"),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 3,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": SAVED,
        "logging_strategy": "no",
        "disable_tqdm": True,
        **changes,
    }
    data = Dataset.from_dict({"input_ids": rows, "labels": rows})
    return Trainer(model=model, args=TrainingArguments(**settings), train_dataset=data)


def train(trainer: Trainer, out: Path, start: str | None = None) -> list[StepReading]:
    readings: list[StepReading] = []
    watch_trainer(trainer, out, on_step=readings.append, keep_every=SAVED)
    if start is None:
        trainer.train()
    else:
        train_from(trainer, find_start(start))
    return readings


def numbers(readings: list[StepReading]) -> list[tuple[Any, ...]]:
    return [(r.step, r.loss, r.grad_norm, r.lr, r.max_gradient, r.max_update) for r in readings]


@pytest.fixture(scope="module", params=ADAMS)
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, list[StepReading]]:
    out = tmp_path_factory.mktemp("run")
    return out, request.param, train(make(out, optim=request.param), out)


@pytest.mark.parametrize("start", [f"kept/{SAVED}", "kept/8", f"out/checkpoint-{SAVED}"])
def test_resumed_run_is_bit_identical(run: tuple[Path, str, list[StepReading]], start: str, tmp_path: Path) -> None:
    out, optim, readings = run
    again = train(make(tmp_path, optim=optim), tmp_path, str(out / start))
    assert again[0].step == int(start.split("/")[1].removeprefix("checkpoint-"))
    assert numbers(again) == numbers(readings)[again[0].step :]


@pytest.mark.parametrize("start", [f"kept/{SAVED}", f"out/checkpoint-{SAVED}"])
def test_resumed_bfloat16_run_is_bit_identical(start: str, tmp_path: Path) -> None:
    """PEFT loads adapters in float32, into parameters that no watch knows."""
    half: dict[str, Any] = {"dtype": torch.bfloat16, "optim": "adamw_torch"}
    readings = train(make(tmp_path, **half), tmp_path)
    trainer = make(tmp_path / "again", **half)
    again = train(trainer, tmp_path / "again", str(tmp_path / start))
    assert numbers(again) == numbers(readings)[SAVED:]
    trainables = [p for p in trainer.model.parameters() if p.requires_grad]
    assert {p.dtype for p in trainables} == {torch.bfloat16} and all(p.grad is None for p in trainables)


@pytest.mark.parametrize("other", ADAMS)
def test_one_adam_resumes_with_the_moments_of_another(
    run: tuple[Path, str, list[StepReading]], other: str, tmp_path: Path
) -> None:
    """Without them its first updates would be as large as the learning rate allows, whatever came before."""
    out, _, readings = run
    for start in (f"kept/{SAVED}", f"out/checkpoint-{SAVED}"):
        again = train(make(tmp_path, optim=other), tmp_path, str(out / start))
        assert again[0].loss == readings[SAVED].loss
        assert again[0].max_update == pytest.approx(readings[SAVED].max_update, rel=0.1)
        assert again[-1].loss == pytest.approx(readings[-1].loss, rel=1e-3)


def test_other_levels_take_effect_from_the_resumed_step(
    run: tuple[Path, str, list[StepReading]], tmp_path: Path
) -> None:
    out, optim, readings = run
    start = str(out / "kept" / str(SAVED))
    slower = train(make(tmp_path, optim=optim, learning_rate=1e-4), tmp_path, start)
    assert slower[0].loss == readings[SAVED].loss
    assert slower[0].lr == pytest.approx(readings[SAVED].lr / 10)
    lower = train(make(tmp_path, optim=optim, dtype=torch.bfloat16), tmp_path, start)
    assert lower[0].step == SAVED
    assert lower[0].loss == pytest.approx(readings[SAVED].loss, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank": 8}, "cannot change in the middle of a run"),
        ({"optim": "sgd"}, "SGD cannot use the state"),
        ({"per_device_train_batch_size": 1}, "the data at step 4 differs from the data of the run at that step"),
        ({"data_seed": 5}, "the data at step 4 differs from the data of the run at that step"),
    ],
)
def test_changes_that_cannot_resume_are_rejected_before_a_step(
    run: tuple[Path, str, list[StepReading]], changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    out, optim, _ = run
    readings: list[StepReading] = []
    trainer = make(tmp_path, **{"optim": optim, **changes})
    watch_trainer(trainer, tmp_path, on_step=readings.append)
    with pytest.raises(InputError, match=says):
        train_from(trainer, find_start(str(out / "kept" / str(SAVED))))
    assert readings == []
    if "rank" in changes or "optim" in changes:
        with pytest.raises(InputError, match=says):
            train_from(make(tmp_path, **{"optim": optim, **changes}), find_start(str(out / f"out/checkpoint-{SAVED}")))


def test_state_of_other_shapes_is_refused_before_a_native_kernel_reads_it(
    run: tuple[Path, str, list[StepReading]], tmp_path: Path
) -> None:
    out, optim, _ = run
    kept, checkpoint = tmp_path / "kept", tmp_path / "checkpoint"
    shutil.copytree(out / "kept" / str(SAVED), kept)
    shutil.copytree(out / f"out/checkpoint-{SAVED}", checkpoint)
    tensors = load_file(kept / "snapshot.safetensors")
    cut = {name: _cut(value) if name.startswith("state/") else value for name, value in tensors.items()}
    save_file(cut, kept / "snapshot.safetensors")
    state = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    torch.save(tree_map_only(torch.Tensor, _cut, state), checkpoint / "optimizer.pt")
    for start in (kept, checkpoint):
        readings: list[StepReading] = []
        trainer = make(tmp_path, optim=optim)
        watch_trainer(trainer, tmp_path / "watched", on_step=readings.append)
        with pytest.raises(InputError, match=r"the optimizer's \w+ of \S+ does not fit"):
            train_from(trainer, find_start(str(start)))
        assert readings == []


def _with(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        if path.suffix == ".json":
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        else:
            torch.save(torch.load(path, weights_only=False) | changes, path)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _with("trainer_state.json", train_batch_size="x"), _with("trainer_state.json", log_history=5),
        _with("trainer_state.json", unknown=1), _with("optimizer.pt", param_groups=[1]),
        _with("optimizer.pt", state=[1]), _with("scheduler.pt", last_epoch="x"), _with("scheduler.pt", base_lrs=["x"]),
        _with("rng_state.pth", python=(3, (1, 2), None)), _with("rng_state.pth", cpu=torch.zeros(3)),
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
    ],
)  # fmt: skip
def test_a_checkpoint_of_other_values_is_refused(
    change: Callable[[Path], None], run: tuple[Path, str, list[StepReading]], tmp_path: Path
) -> None:
    out, optim, _ = run
    shutil.copytree(out / f"out/checkpoint-{SAVED}", tmp_path / "checkpoint")
    change(tmp_path / "checkpoint")
    trainer = make(tmp_path, optim=optim)
    with pytest.raises(InputError, match=r"^\S.* give another start_from=\.$"):
        train_from(trainer, find_start(str(tmp_path / "checkpoint")))


def _cut(value: torch.Tensor) -> torch.Tensor:
    return value.flatten()[:2].clone()


def test_find_start_takes_the_last_snapshot_or_names_the_problem(
    run: tuple[Path, str, list[StepReading]], tmp_path: Path
) -> None:
    out, _, _ = run
    assert [path.name for path in sorted((out / "kept").iterdir())] == ["4", "8"], "the last two stay"
    assert find_start(str(out)).step == 8
    assert find_start(str(out / "kept/4")).sha256() != find_start(str(out / "kept/8")).sha256()
    with pytest.raises(InputError, match="holds neither a snapshot nor a checkpoint"):
        find_start(str(tmp_path))


def test_a_resumed_trainer_later_trains_with_its_real_methods(tmp_path: Path) -> None:
    first = make(tmp_path)
    train(first, tmp_path)
    resumed = make(tmp_path / "resumed")
    callbacks = list(resumed.callback_handler.callbacks)
    train_from(resumed, find_start(str(tmp_path / "kept" / str(SAVED))))
    assert resumed.callback_handler.callbacks == callbacks
    for method in ("_load_from_checkpoint", "_load_rng_state", "_load_optimizer_and_scheduler", "get_batch_samples"):
        assert getattr(resumed, method).__func__ is getattr(Trainer, method)

    # with methods that load nothing, the checkpoint's weights, optimizer and random states would be ignored
    resumed.train(resume_from_checkpoint=str(tmp_path / f"out/checkpoint-{SAVED}"))
    pairs = zip(resumed.model.parameters(), first.model.parameters(), strict=True)
    assert all(torch.equal(again, before) for again, before in pairs if before.requires_grad)
