"""Every command that the README shows can be typed as it stands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from nangrid import NonFiniteError
from nangrid.cell.model.tiny import tiny_gemma
from nangrid.commands.check import main as check
from nangrid.commands.compose import composed
from nangrid.commands.diagnose import main as diagnose
from nangrid.commands.replay import main as replay
from nangrid.commands.report import main as report
from nangrid.commands.run import main as run
from nangrid.commands.status import main as status
from nangrid.diagnosis.oracle import DiagnosisProblem
from nangrid.grid.plan import CellPlan, plan_cell
from nangrid.records.grid import GridDirectory

README = (Path(__file__).parents[2] / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"python -m src\.(.+?)(?=`|\s{2,}#|\n(?!upcast=)|$)", README)))


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) > 10


def _with_files(arguments: list[str], tmp_path: Path) -> list[str]:
    """The reader's own files, which the README can only name."""
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "a", "completion": "b"}\n')
    given = {"model.id=/path/to/model": f"model.id={tiny_gemma(1)}", "data.path=chats.jsonl": f"data.path={chats}"}
    return [given.get(argument, argument) for argument in arguments]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_composes(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *arguments = shlex.split(command)
    if any(argument.startswith("start_from=") for argument in arguments):
        assert {"run": run, "diagnose": diagnose}[name](arguments) == 2  # read, and no such cell
    elif name == "run":
        monkeypatch.setenv("WANDB_API_KEY", "none")
        assert run([*_with_files(arguments, tmp_path), "dry_run=true"]) == 0
    elif name == "replay":
        assert replay([str(tmp_path), *arguments[1:]]) == 2  # read, and no such cell
    elif name == "diagnose":
        monkeypatch.setattr("nangrid.commands.diagnose.diagnose", lambda question, horizon, say: question)
        asked: list[DiagnosisProblem] = []
        monkeypatch.setattr("nangrid.commands.diagnose.tell", lambda question, *_: asked.append(question))
        assert diagnose(arguments) == 0
        assert asked[0].plan(asked[0].levels(asked[0].everything), 4, 0).cell_id
    elif name == "check":
        planned: list[CellPlan] = []
        monkeypatch.setattr(
            "nangrid.commands.check._check", lambda given: planned.append(plan_cell(composed(given), given))
        )
        assert check(arguments) == 0 and planned[0].cell_id
    elif name == "report":
        GridDirectory.open(tmp_path)
        assert report([str(tmp_path), *arguments[1:]]) == 2  # read, and no cell in it
    else:
        assert name == "status"
        GridDirectory.open(tmp_path)
        monkeypatch.setattr("nangrid.commands.status.QUIET_S", 0.1)
        assert status([str(tmp_path), *arguments[1:]]) == 0


def blocks() -> tuple[str, str]:
    bare, trainer, *_ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return bare, trainer


def test_the_bare_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Linear(2, 1).half()

    def closure(batch: Tensor) -> Tensor:
        loss = model(batch).sum()
        loss.backward()
        return loss

    batches = [torch.ones(1, 2).half(), torch.full((1, 2), 6e4).half() * 4]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(NonFiniteError, match="loss went non-finite at step 1"):
        exec(blocks()[0], {"model": model, "optimizer": optimizer, "batches": batches, "closure": closure})
    assert (tmp_path / "autopsy" / "autopsy.json").exists()


def test_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Diverging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": torch.log(self.scale(x) * 0).sum()}

    monkeypatch.chdir(tmp_path)
    options = {"max_steps": 3, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    arguments = transformers.TrainingArguments(output_dir="out", **options)
    trainer = transformers.Trainer(model=Diverging(), args=arguments, train_dataset=[{"x": torch.ones(1)}] * 8)
    exec(blocks()[1], {"trainer": trainer})
    assert trainer.state.global_step == 1 and "log-of-zero" in caplog.text


def test_the_watch_needs_torch_alone() -> None:
    without = "hydra omegaconf pandas pyarrow transformers peft wandb datasets bitsandbytes rich psutil accelerate"
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({without.split()!r})); from nangrid import Watch; print(Watch)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
