"""nangrid.diagnose on a function of the user's: what cannot be asked is said at once, and a late failure goes on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nangrid
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory

SCRIPT = """
import sys
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
    if sys.argv[1] == "run":
        trainer = make_trainer(FAILING)
        watch_trainer(trainer, "autopsy", keep_every=10)
        trainer.train()
    elif sys.argv[1] == "diagnose":
        nangrid.diagnose(make_trainer, failing=FAILING, reference=REFERENCE, start_from="autopsy", out="out")
    else:
        nangrid.diagnose(make_trainer, failing={"lr": "no trainer", "clip": 0.0}, reference=REFERENCE, out="out")
"""


def script(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "mine.py").write_text(SCRIPT)
    return subprocess.run([sys.executable, "mine.py", *arguments], cwd=tmp_path, capture_output=True, text=True)


def test_a_late_failure_of_a_script_goes_on_from_its_own_snapshot(tmp_path: Path) -> None:
    """Steepest descent that overshoots doubles its error each step until float32 ends."""
    done = script(tmp_path, "run")
    assert "training went non-finite at step" in done.stderr
    (tmp_path / "run").mkdir(exist_ok=True)
    done = script(tmp_path, "diagnose")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all tried from step" in done.stdout
    assert "enough: lr=10.0 clip=0.0" in done.stdout
    assert "cure: lr=0.1" in done.stdout or "cure: clip=1.0" in done.stdout
    records, errors = GridDirectory.open(tmp_path / "out").records()
    assert errors == [] and all(record.first_step >= 10 for record in records)


def test_what_is_no_trainer_is_said_in_one_sentence(tmp_path: Path) -> None:
    done = script(tmp_path, "refused")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "mine.py:make_trainer returned a str: let it return the transformers.Trainer, not trained." in last


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
def test_levels_that_are_none(failing: dict[str, Any], reference: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        nangrid.diagnose(make_trainer, failing=failing, reference=reference, out=str(tmp_path))


def test_a_function_that_no_other_process_can_find(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be found from another process"):
        nangrid.diagnose(lambda levels: None, failing={"lr": 1.0}, reference={"lr": 0.1}, out=str(tmp_path))
