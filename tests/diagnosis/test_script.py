"""nangrid.diagnose on a user's function: a Trainer that fails late, a plain loop, and input that is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nangrid
from nangrid.analysis.evidence import gather
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory

SCRIPT = """
import torch
from transformers import Trainer, TrainingArguments
import nangrid
from nangrid.integrations import watch_trainer

class Bowl(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, x):
        return {"loss": (self.weight * x).pow(2).mean()}

def make_trainer(levels):
    if levels["lr"] == "no trainer":
        return "something else"
    torch.manual_seed(0)
    data = [{"x": torch.ones(4)} for _ in range(400)]
    args = TrainingArguments("run", optim="sgd", learning_rate=levels["lr"], max_grad_norm=levels["clip"],
        max_steps=400, lr_scheduler_type="constant", per_device_train_batch_size=1, save_steps=100,
        report_to="none", use_cpu=True, disable_tqdm=True)
    return Trainer(Bowl(), args, train_dataset=data)

FAILING, REFERENCE = {"lr": 10.0, "clip": 0.0}, {"lr": 0.1, "clip": 1.0}
if __name__ == "__main__":
    trainer = make_trainer(FAILING)
    watch_trainer(trainer, "autopsy", keep_every=10)
    trainer.train()
    nangrid.diagnose(make_trainer, failing=FAILING, reference=REFERENCE, start_from="autopsy", out="out")
    nangrid.diagnose(make_trainer, failing={"lr": "no trainer", "clip": 0.0}, reference=REFERENCE, out="refused")
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One run of SCRIPT for all its tests: every interpreter and its fork server import torch anew."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "mine.py").write_text(SCRIPT)
    return folder, subprocess.run([sys.executable, "mine.py"], cwd=folder, capture_output=True, text=True)


def test_late_failure_of_a_script_resumes_from_its_snapshot(
    script: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """Steepest descent that overshoots doubles its error each step until float32 overflows."""
    folder, done = script
    assert "training went non-finite at step" in done.stderr
    assert "resumed at step" in done.stdout
    assert "sufficient: lr=10.0 clip=0.0" in done.stdout
    assert "cure: lr=0.1" in done.stdout and "cure: clip=1.0" in done.stdout
    records, errors = GridDirectory.open(folder / "out").records()
    assert errors == [] and all(record.first_step >= 10 for record in records)


def test_function_without_a_trainer_is_refused_in_one_sentence(
    script: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, done = script
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert (
        "mine.py:make_trainer returned a str and made no nangrid.Watch: let it return an untrained "
        "transformers.Trainer, " in last
    )


LOOP = """
import sys
import torch
from torch import nn
import nangrid
from nangrid.records.errors import InputError

class Pooled(nn.Module):
    def __init__(self, eps):
        super().__init__()
        self.embed, self.head, self.eps = nn.Embedding(50, 8), nn.Linear(8, 2), eps

    def forward(self, ids, mask):
        words = self.embed(ids) * mask[..., None]
        return self.head(words.sum(1) / (mask.sum(1, keepdim=True) + self.eps))

def train(levels):
    torch.manual_seed(3)
    model = Pooled(levels["eps"]).to(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=levels["lr"])
    watch = nangrid.Watch(model, optimizer)
    if levels["watches"] == 2:
        nangrid.Watch(model, optimizer)
    if levels["watches"] == 0:
        return

    def closure(batch):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(batch["ids"], batch["mask"]).float(), batch["y"])
        loss.backward()
        return loss

    for step in range(10**6):
        words = torch.randint(1, 9, (16,))
        if step == 7:
            words[3] = 0  # an empty text
        mask = (torch.arange(8)[None] < words[:, None]).float()
        batch = {"ids": torch.randint(0, 50, (16, 8)), "mask": mask, "y": torch.randint(0, 2, (16,))}
        try:
            watch.step(closure, batch)
        except Exception as error:
            raise

if __name__ == "__main__":
    for watches in map(int, sys.argv[1:]):
        failing = {"eps": 0.0, "lr": 1e-2, "watches": watches}
        reference = {"eps": 1e-6, "lr": 1e-3, "watches": watches}
        try:
            nangrid.diagnose(train, failing=failing, reference=reference, out=f"out{watches}")
        except InputError as error:
            print("refused:", error)
"""


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One run of LOOP with one, two and no Watch for all its tests."""
    folder = tmp_path_factory.mktemp("loop")
    (folder / "loop.py").write_text(LOOP)
    command = [sys.executable, "loop.py", "1", "2", "0"]
    return folder, subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_plain_loop_is_diagnosed(loop: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    """The mean over the words of a text without a word is 0 / 0."""
    folder, done = loop
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sufficient: eps=0.0 (3 of 3 seeds: " in done.stdout
    assert "cure: eps=1e-06 (3 of 3 seeds train for 32 steps" in done.stdout
    assert "origin: aten.div.Tensor (loop.py:15), forward invalid" in done.stdout
    assert not (folder / "autopsy").exists(), "what a cell leaves is in its directory"
    records, errors = GridDirectory.open(folder / "out1").records()
    assert errors == []
    assert {record.onset.step for record in records if record.onset} == {7}
    assert {record.ledger["autocast"] for record in records} == {"bfloat16"}
    evidence = gather(GridDirectory.open(folder / "out1"), None)
    assert evidence.verdict[0].startswith("diagnosis of") and "  sufficient: eps=0.0" in evidence.verdict[2]
    assert (evidence.base["eps"], evidence.base["lr"]) == ("1e-06", "0.001"), "the report compares with its reference"
    losses = {record.factors["seed"]: record.trains.loss_first for record in records if record.factors["lr"] == 1e-3}
    assert len(set(losses.values())) == len(losses) == 3, "repeats have different seeds, though the script sets one"


def test_loop_with_two_watches_or_none_is_refused_in_one_sentence(
    loop: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, done = loop
    assert "refused: loop.py:train made two nangrid.Watch: let one take all steps of the run." in done.stdout
    assert "refused: loop.py:train took no step: give it data for at least one." in done.stdout


def make_trainer(levels: dict[str, Any]) -> Any:
    raise AssertionError("not to be called here")


@pytest.mark.parametrize(
    ("failing", "reference", "says"),
    [
        ({"lr": 1.0}, {"lr": 1.0}, "the same run"),
        ({"lr": 1.0, "clip": 1}, {"lr": 0.1}, "clip is given on one side only"),
        ({"lr": [1.0]}, {"lr": 0.1}, "is a list"),
        ({"seed": 1}, {"seed": 2}, "seed cannot name a level"),
    ],
)
def test_invalid_levels_are_refused(
    failing: dict[str, Any], reference: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        nangrid.diagnose(make_trainer, failing=failing, reference=reference, out=str(tmp_path))


def test_function_that_no_other_process_can_find_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be found from another process"):
        nangrid.diagnose(lambda levels: None, failing={"lr": 1.0}, reference={"lr": 0.1}, out=str(tmp_path))
