"""TRL's trainers under watch_trainer: SFT, DPO, SimPO and GRPO, each with a fault that users have met."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from torch import Tensor
from trainer_arguments import arguments

from nangrid.cell.model.tiny import tiny_gemma
from nangrid.integrations import watch_trainer
from nangrid.records.autopsy import Autopsy, read_autopsy

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")
LONG = 24
MARKER = 9


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return tiny_gemma(1)


def trl_arguments(out: Path, **changes: Any) -> dict[str, Any]:
    short = {"max_steps": 4, "learning_rate": 1e-3, "train_sampling_strategy": "sequential"}
    return arguments(out, **short | {"bf16": False, "gradient_checkpointing": False} | changes)


def parts(checkpoint: Path) -> dict[str, Any]:
    transformers.set_seed(0)
    return {
        "model": transformers.Gemma3ForCausalLM.from_pretrained(checkpoint),
        "processing_class": transformers.AutoTokenizer.from_pretrained(checkpoint),
    }


class AfterTheMarker:
    """A collator that trains on what follows a marker; in sample 2 there is none."""

    def __init__(self, marker: int) -> None:
        self.marker = marker

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = torch.tensor([sample["input_ids"] for sample in samples])
        follows = (ids == self.marker).cumsum(dim=1) > 0
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.masked_fill(~follows, -100)}


def mean_over_labels(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    scores = outputs.logits[:, :-1].flatten(0, 1).float()
    total = torch.nn.functional.cross_entropy(scores, labels[:, 1:].flatten(), reduction="sum")
    return total / (labels[:, 1:] != -100).sum()


def sft(checkpoint: Path, out: Path) -> transformers.Trainer:
    """A response template that is missing in a sample leaves it without labels."""
    rows = [{"input_ids": [5, 6, 7 if row == 2 else MARKER, *range(10, LONG)]} for row in range(4)]
    options = trl.SFTConfig(**trl_arguments(out, per_device_train_batch_size=1))
    own = {"data_collator": AfterTheMarker(MARKER), "compute_loss_func": mean_over_labels}
    return trl.SFTTrainer(args=options, train_dataset=Dataset.from_list(rows), **own, **parts(checkpoint))


def dpo(checkpoint: Path, out: Path) -> transformers.Trainer:
    """The learning rate is too large, and the divergence is an exponential of the log-ratio."""
    rows = [{"prompt": "the ", "chosen": "value", "rejected": "object"} for _ in range(8)]
    options = trl.DPOConfig(**trl_arguments(out, learning_rate=2.0), f_divergence_type="forward_kl")
    return trl.DPOTrainer(args=options, train_dataset=Dataset.from_list(rows), **parts(checkpoint))


def simpo(checkpoint: Path, out: Path) -> transformers.Trainer:
    """SimPO divides by the length of a completion, of which the prompt of sample 5 has left nothing."""
    cpo = pytest.importorskip("trl.experimental.cpo")
    rows = [{"prompt": "the ", "chosen": "value", "rejected": "object"} for _ in range(8)]
    rows[5]["prompt"] = "the value " * LONG
    options = cpo.CPOConfig(**trl_arguments(out), loss_type="simpo", cpo_alpha=0.0, max_length=LONG)
    return cpo.CPOTrainer(args=options, train_dataset=Dataset.from_list(rows), **parts(checkpoint))


def grpo(checkpoint: Path, out: Path, **changes: Any) -> transformers.Trainer:
    """The first update makes the completions improbable, and the divergence is an exponential of the log-ratio."""
    changes = {"learning_rate": 3.0, "num_iterations": 2, **changes}
    options = trl.GRPOConfig(**trl_arguments(out, **changes), beta=0.1, num_generations=2, max_completion_length=6)
    data = Dataset.from_list([{"prompt": "the value "} for _ in range(8)])
    return trl.GRPOTrainer(args=options, train_dataset=data, reward_funcs=Rewards(), **parts(checkpoint))


class Rewards:
    """Longer completions are better; it remembers them."""

    __name__ = "rewards"

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        self.seen.append(completions)
        return [float(len(completion)) for completion in completions]


def losses_of(trainer: transformers.Trainer) -> list[float]:
    """The losses of the live steps, bit by bit."""
    found: list[float] = []
    original = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        found.append(loss.item())
        return loss

    trainer.training_step = training_step
    return found


def stopped(make: Callable[[Path, Path], transformers.Trainer], checkpoint: Path, out: Path) -> Autopsy:
    """The autopsy of a trainer, whose losses until the onset are those of a plain run."""
    plain = make(checkpoint, out)
    unwatched = losses_of(plain)
    with suppress(RuntimeError):  # GRPO cannot sample from what is not a number
        plain.train()
    trainer = make(checkpoint, out)
    watch_trainer(trainer, out / "autopsy")
    watched = losses_of(trainer)
    trainer.train()
    autopsy = read_autopsy(out / "autopsy")
    assert autopsy is not None and autopsy.reproduced, autopsy
    assert watched[: autopsy.step] == unwatched[: autopsy.step] and len(watched) <= len(unwatched)
    return autopsy


def test_sft_with_an_empty_completion(checkpoint: Path, tmp_path: Path) -> None:
    autopsy = stopped(sft, checkpoint, tmp_path)
    assert (autopsy.step, autopsy.clock, autopsy.mechanism) == (2, "loss", "empty-labels")


def test_dpo_whose_log_ratio_overflows(checkpoint: Path, tmp_path: Path) -> None:
    autopsy = stopped(dpo, checkpoint, tmp_path)
    assert (autopsy.step, autopsy.clock, autopsy.op, autopsy.kind) == (1, "loss", "aten.exp.default", "overflow")
    assert autopsy.mechanism == "exp-overflow" and autopsy.source.startswith("dpo_trainer.py:")


def test_simpo_with_an_empty_completion(checkpoint: Path, tmp_path: Path) -> None:
    autopsy = stopped(simpo, checkpoint, tmp_path)
    assert (autopsy.step, autopsy.clock, autopsy.op, autopsy.kind) == (2, "loss", "aten.div.Tensor", "invalid")
    assert autopsy.output is not None and autopsy.output.first_index == [1], "sample 5 is the second of step 2"


def test_grpo_whose_log_ratio_overflows(checkpoint: Path, tmp_path: Path) -> None:
    autopsy = stopped(grpo, checkpoint, tmp_path)
    assert (autopsy.step, autopsy.clock, autopsy.op, autopsy.kind) == (1, "loss", "aten.exp.default", "overflow")
    assert autopsy.source.startswith("grpo_trainer.py:")


def test_grpo_generates_the_same_completions_in_a_replay(checkpoint: Path, tmp_path: Path) -> None:
    trainer = grpo(checkpoint, tmp_path, num_iterations=1, learning_rate=100.0, weight_decay=3e38)
    watch_trainer(trainer, tmp_path / "autopsy")
    with suppress(RuntimeError):
        trainer.train()
    autopsy = read_autopsy(tmp_path / "autopsy")
    assert autopsy is not None and autopsy.reproduced
    assert (autopsy.step, autopsy.phase, autopsy.mechanism) == (0, "optimizer", "unknown")
    (rewards,) = trainer.reward_funcs
    assert len(rewards.seen) > 2 and rewards.seen[1] == rewards.seen[0] != ["", ""]
