"""LightningWatch: modules as people write them, each with a natural fault in forward, backward or optimizer."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch import Tensor, nn
from torchmetrics import MeanMetric

from nangrid import NonFiniteError
from nangrid.integrations import LightningWatch
from nangrid.records.autopsy import Autopsy, read_autopsy
from nangrid.records.errors import InputError
from nangrid.watch.deferred import DeferredInspector

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]
BAD = 4
"""Index of the batch that a faulty run fails at."""
FAULTY = {"lr": 100.0, "weight_decay": 3e38}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"profiler": "simple"},
    "accumulated": {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0},
    "mixed": {"precision": "bf16-mixed", "gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
}
ORIGINS = {"forward": "aten.log.default", "backward": "aten.div.Tensor", "optimizer": "aten."}


class Regression(lightning.LightningModule):
    """A net on the logarithm of its input, which remembers its last output."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1))
        self.mean = MeanMetric()
        self.fault = fault
        self.losses: list[float] = []
        self.carried = torch.zeros(())

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        out = self.net(torch.log(x)).float().mean()
        # The logarithm of 0 is infinite, and the slope of a root at 0.
        loss = (out - 0.1 * self.carried).pow(2) + (torch.log(x).sum() * out).pow(2).sqrt()
        self.carried = out.detach()
        self.losses.append(loss.item())
        self.mean(loss.detach())
        self.log("loss", loss, on_epoch=True)
        return loss

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        torch.rand(1)  # what a hook draws is no part of the step
        if self.fault == "optimizer" and batch_idx >= BAD:
            self.optimizers().param_groups[0].update(FAULTY)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Adversaries(lightning.LightningModule):
    """Manual optimization: a generator and a discriminator, each with its optimizer."""

    def __init__(self, fault: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.fault = fault
        self.generator, self.discriminator = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        self.losses: list[float] = []

    def training_step(self, real: Tensor, batch_idx: int) -> None:
        generators, discriminators = self.optimizers()
        fake = self.generator(torch.randn(len(real), 2))
        loss = (self.discriminator(fake.detach()) - self.discriminator(real)).mean()
        self.losses.append(loss.item())
        discriminators.zero_grad()
        self.manual_backward(loss)
        if self.fault and batch_idx == BAD:
            discriminators.param_groups[0].update(FAULTY)
        discriminators.step()
        generators.zero_grad()
        self.manual_backward(-self.discriminator(fake).mean())
        generators.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        parts = (self.generator, self.discriminator)
        return [torch.optim.SGD(part.parameters(), lr=0.01, momentum=0.5) for part in parts]


def inputs(fault: str = "") -> list[Tensor]:
    torch.manual_seed(1)
    batches = [torch.rand(4, 3) + 0.1 for _ in range(7)]
    if fault == "forward":
        batches[BAD][1, 2] = 0
    if fault == "backward":
        batches[BAD].fill_(1)
    return batches


def fit(module: lightning.LightningModule, batches: Any, out: Path | None = None, **settings: Any) -> Any:
    """Train on the batches, under the watch if its directory is given; the trainer."""
    torch.manual_seed(2)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    callbacks = [] if out is None else [LightningWatch(out)]
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, callbacks=callbacks, **quiet, **settings)
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    return trainer


def stopped(module: lightning.LightningModule, batches: list[Tensor], out: Path, **settings: Any) -> Autopsy:
    with pytest.raises(NonFiniteError) as raised:
        fit(module, batches, out, **settings)
    autopsy = raised.value.autopsy
    assert autopsy is not None and read_autopsy(out) == autopsy
    assert autopsy.reproduced, autopsy.evidence
    return autopsy


@pytest.mark.parametrize("fault", ["forward", "backward", "optimizer"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_trainer_with_a_fault(setting: str, fault: str, tmp_path: Path) -> None:
    plain, module = Regression(fault), Regression(fault)
    fit(plain, inputs(fault), **SETTINGS[setting])
    autopsy = stopped(module, inputs(fault), tmp_path, **SETTINGS[setting])
    assert (autopsy.phase, autopsy.step) == (fault, BAD // 2 if setting == "accumulated" else BAD)
    assert autopsy.op.startswith(ORIGINS[fault])
    assert fault == "optimizer" or autopsy.source.startswith("test_lightning.py:")
    assert module.losses[:BAD] == plain.losses[:BAD] and len(module.losses) <= BAD + 2


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_healthy_trainer_is_not_changed(setting: str, tmp_path: Path) -> None:
    plain, module = Regression(), Regression()
    unwatched = fit(plain, inputs(), **SETTINGS[setting])
    state = torch.get_rng_state()
    watched = fit(module, inputs(), tmp_path, **SETTINGS[setting])
    assert module.losses == plain.losses
    assert all(map(torch.equal, module.parameters(), plain.parameters()))
    assert torch.equal(state, torch.get_rng_state())
    assert watched.callback_metrics == unwatched.callback_metrics and list(tmp_path.iterdir()) == []


def test_a_step_that_a_scaler_skips_is_neither_logged_nor_counted_twice(tmp_path: Path) -> None:
    found = []
    for out in (None, tmp_path):
        module = Regression()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=2)
        trainer = fit(module, inputs(), out, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        found.append((module.losses, module.mean.compute(), trainer.callback_metrics, scaler.get_scale()))
    assert found[0] == found[1] and found[0][-1] < 2.0**127, "it has skipped a step"
    assert list(tmp_path.iterdir()) == []


def test_manual_optimization_of_a_gan_whose_discriminators_optimizer_fails(tmp_path: Path) -> None:
    plain, healthy, failing = Adversaries(False), Adversaries(False), Adversaries(True)
    fit(plain, inputs())
    fit(healthy, inputs(), tmp_path)
    assert all(map(torch.equal, healthy.parameters(), plain.parameters()))
    autopsy = stopped(failing, inputs(), tmp_path)
    assert (autopsy.step, autopsy.clock, autopsy.phase) == (BAD, "parameter", "optimizer")
    assert autopsy.parameters and all(name.startswith("discriminator.") for name in autopsy.parameters)
    assert failing.losses == plain.losses[: BAD + 1]


def test_a_window_that_is_examined_steps_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nangrid.watch.watch.inspector_for", DeferredInspector)
    module = Regression("backward")
    autopsy = stopped(module, inputs("backward") + inputs(), tmp_path, accumulate_grad_batches=2)
    assert (autopsy.step, autopsy.phase, autopsy.micro_batch) == (BAD // 2, "backward", 0)
    assert len(module.losses) > BAD + 2


def test_a_guard_of_the_module_is_explained(tmp_path: Path) -> None:
    class Guarded(Regression):
        def on_before_backward(self, loss: Tensor) -> None:
            if not torch.isfinite(loss):
                raise FloatingPointError("loss is not finite")

    with pytest.raises(FloatingPointError) as raised:
        fit(Guarded(), inputs("forward"), tmp_path)
    assert "a number was already non-finite:\norigin: aten.log.default" in raised.value.__notes__[0]


def test_an_iterator_of_the_loader_is_refused_before_the_first_step(tmp_path: Path) -> None:
    class Drawing(Regression):
        def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
            return super().training_step(next(dataloader_iter)[0], 0)

    module = Drawing()
    with pytest.raises(InputError, match="does not support dataloader_iter: let training_step take a batch"):
        fit(module, inputs(), tmp_path)
    assert module.losses == []


class DeepSpeedStrategy(DDPStrategy):
    """As Lightning's own, which only exists where DeepSpeed is installed."""


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_a_strategy_that_cannot_be_watched_is_refused_by_name(strategy: Any, tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(strategy=strategy())
    with pytest.raises(InputError, match=f"does not support {strategy.__name__}: train on one device, or with strat"):
        LightningWatch(tmp_path).on_train_start(trainer, Regression())


DIAGNOSED = """
import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset
import nangrid
from nangrid.integrations import LightningWatch

class Scaled(lightning.LightningModule):
    def __init__(self, levels):
        super().__init__()
        self.net, self.levels = torch.nn.Linear(8, 1), levels

    def training_step(self, batch, batch_idx):
        x, y = batch
        error = self.net(x).squeeze(1) - y
        loss = (error / (x.std(1) + self.levels["eps"])).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

def train(levels):
    torch.manual_seed(0)
    x = torch.randn(40, 8)
    x[11] = 1.0  # all numbers of a sample are equal
    options = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=50, accelerator="cpu", callbacks=[LightningWatch()], **options)
    trainer.fit(Scaled(levels), DataLoader(TensorDataset(x, torch.randn(40)), batch_size=4))

if __name__ == "__main__":
    nangrid.diagnose(train, failing={"eps": 0.0}, reference={"eps": 1.0}, seeds=1, out="out")
"""


def test_script_is_diagnosed(tmp_path: Path) -> None:
    """Each run ends at its horizon, long before the epochs do."""
    (tmp_path / "scaled.py").write_text(DIAGNOSED)
    done = subprocess.run([sys.executable, "scaled.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "eps=1.0: finite for 16 steps" in done.stdout
    assert "sufficient: eps=0.0 (one seed: " in done.stdout and "cure: eps=1.0 (one seed " in done.stdout
    assert "origin: aten.div.Tensor (scaled.py:16), forward division by zero" in done.stdout
