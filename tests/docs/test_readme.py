"""The code that the README shows runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from nangrid import NonFiniteError

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


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


def test_the_guide_shows_the_same_loops() -> None:
    assert all(block in (ROOT / "docs" / "guide" / "watch.md").read_text() for block in blocks())
