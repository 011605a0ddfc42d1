"""User scripts on the Trainer of transformers and TRL, watched by one added line and without the grid."""

import math
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
from nangrid.watch import Clocks

NEW = 8
LENGTH = 16


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return tiny_gemma(12)


@pytest.fixture(autouse=True)
def seeded() -> None:
    transformers.set_seed(0)


def samples(rows: int, ignored: tuple[int, ...] = ()) -> Dataset:
    """Text of old tokens; the labels of the rows `ignored` are all -100."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 1000, (rows, LENGTH), generator=draw).tolist()
    labels = [[-100] * LENGTH if row in ignored else row_ids for row, row_ids in enumerate(ids)]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * LENGTH] * rows, "labels": labels})


class MeanOverTokens(transformers.Trainer):
    """A custom loss: the sum over the tokens, divided by their number."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        scores = torch.nn.functional.cross_entropy(
            outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        loss: Tensor = scores / (labels[:, 1:] != -100).sum()
        return (loss, outputs) if return_outputs else loss


def autopsy_in(folder: Path) -> Autopsy:
    autopsy = read_autopsy(folder)
    assert autopsy is not None and autopsy.reproduced
    return autopsy


def train(trainer: transformers.Trainer, out: Path, caplog: pytest.LogCaptureFixture) -> Clocks:
    watch = watch_trainer(trainer, out / "autopsy")
    trainer.train()
    assert ("training went non-finite" in caplog.text) == (watch.clocks.onset is not None)
    return watch.clocks


def test_custom_loss_that_divides_by_zero_tokens(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = transformers.Gemma3ForCausalLM.from_pretrained(checkpoint)
    options = transformers.TrainingArguments(
        **arguments(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=3)
    )
    options.set_dataloader(train_batch_size=1, sampler_seed=0)
    data = samples(18, ignored=tuple(range(18))[7:8])
    trainer = MeanOverTokens(model=model, args=options, train_dataset=data)
    clocks = train(trainer, tmp_path, caplog)
    autopsy = autopsy_in(tmp_path / "autopsy")
    assert clocks.onset is not None and clocks.onset.clock == "loss"
    assert autopsy.step == clocks.onset.step == trainer.state.global_step - 1, "and then it stops"
    assert (autopsy.phase, autopsy.kind, autopsy.op) == ("forward", "invalid", "aten.div.Tensor")
    assert autopsy.mechanism == "empty-labels" and autopsy.source.startswith("test_trainers.py:")


def test_evaluation_without_labels(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = transformers.Gemma3ForCausalLM.from_pretrained(checkpoint)
    options = transformers.TrainingArguments(
        **arguments(tmp_path, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=1)
    )
    data = {"train_dataset": samples(12), "eval_dataset": samples(4, ignored=(2,))}
    trainer = MeanOverTokens(model=model, args=options, **data)
    clocks = train(trainer, tmp_path, caplog)
    autopsy = autopsy_in(tmp_path / "autopsy")
    assert (autopsy.step, autopsy.clock) == (1, "eval_loss") and clocks.first["loss"] is None
    assert (autopsy.phase, autopsy.op, autopsy.mechanism) == ("forward", "aten.div.Tensor", "empty-labels")


def test_healthy_run_is_unchanged(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    losses = []
    for watched in (False, True):
        transformers.set_seed(0)
        model = transformers.Gemma3ForCausalLM.from_pretrained(checkpoint)
        options = transformers.TrainingArguments(**arguments(tmp_path, max_steps=3))
        trainer = transformers.Trainer(model=model, args=options, train_dataset=samples(8))
        if watched:
            train(trainer, tmp_path, caplog)
        else:
            trainer.train()
        losses.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True)), "not a bit of it"
    assert not (tmp_path / "autopsy").exists()


def test_trl_trainer_with_zero_rows(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """huggingface/peft#1715 in small: new tokens, their rows zero, LoRA by TRL's SFTTrainer."""
    peft, trl = pytest.importorskip("peft"), pytest.importorskip("trl")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens([f"<new{i}>" for i in range(NEW)])
    model = transformers.Gemma3ForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[-NEW:] = 0
    texts = ["".join(f"<new{(i + j) % NEW}>" for j in range(LENGTH)) for i in range(8)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**arguments(tmp_path, bf16=False, gradient_checkpointing=False)),
        train_dataset=Dataset.from_dict({"input_ids": ids}),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "embed_tokens"]),
    )
    clocks = train(trainer, tmp_path, caplog)
    autopsy = autopsy_in(tmp_path / "autopsy")
    assert clocks.onset is not None and autopsy.step == 0 and autopsy.clock == "gradient"
    assert (autopsy.phase, autopsy.kind, autopsy.mechanism) == ("backward", "overflow", "zero-row-norm-gradient")
    assert {token.text for token in autopsy.tokens} <= {f"<new{i}>" for i in range(NEW)}
    assert not math.isfinite(clocks.readings[0].max_gradient)
