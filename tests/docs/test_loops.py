"""The loops of the guide fail where they should, and name the line."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from nangrid import NonFiniteError

ROOT = Path(__file__).parents[2]
TIMESTEPS = 10


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)


def test_gan_whose_discriminator_is_certain() -> None:
    real = [torch.full((4, 3), 1.0 if step < 3 else 1e6) for step in range(6)]
    discriminator = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
    with torch.no_grad():
        discriminator[0].weight.fill_(-1.0)
    with pytest.raises(NonFiniteError) as raised:
        example("gan").train(nn.Linear(2, 3), discriminator, real)
    autopsy = raised.value.autopsy
    assert autopsy is not None and (autopsy.step, autopsy.op) == (3, "aten.log.default")
    assert autopsy.source.startswith("gan.py:") and autopsy.reproduced


def test_accelerate_with_a_weight_of_infinity() -> None:
    noisy, noise, snr = torch.randn(10, 3), torch.randn(10, 3), torch.ones(10)
    snr[9] = 0
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(noisy, noise, snr), batch_size=2)
    with pytest.raises(NonFiniteError) as raised:
        example("accelerate_loop").train(nn.Linear(3, 3), loader)
    autopsy = raised.value.autopsy
    assert autopsy is not None and (autopsy.step, autopsy.op) == (2, "aten.div.Tensor")
    assert autopsy.source.startswith("accelerate_loop.py:") and autopsy.reproduced


class UNet(nn.Module):
    """One layer down, one up, and the timestep in between; it remembers its timesteps."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.time = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Embedding(TIMESTEPS, 4)
        self.up = nn.ConvTranspose2d(4, 1, 2, stride=2)
        self.seen: list[list[int]] = []

    def forward(self, images: Tensor, t: Tensor) -> Tensor:
        self.seen.append(t.tolist())
        hidden: Tensor = self.up(torch.relu(self.down(images) + self.time(t)[:, :, None, None]))
        return hidden


def test_diffusion_at_its_last_timestep() -> None:
    unet, loader = UNet(), torch.utils.data.DataLoader(torch.randn(32, 1, 4, 4), batch_size=2)
    with pytest.raises(NonFiniteError) as raised:
        example("diffusion").train(unet, loader, timesteps=TIMESTEPS)
    autopsy = raised.value.autopsy
    assert autopsy is not None and autopsy.reproduced and autopsy.source.startswith("diffusion.py:")
    assert (autopsy.op, autopsy.kind) == ("aten.div.Tensor", "invalid") and autopsy.output is not None
    failing = next(number for number, t in enumerate(unet.seen) if TIMESTEPS - 1 in t)
    assert (autopsy.step, autopsy.micro_batch) == divmod(failing, 2) and failing > 1
    assert autopsy.output.first_index[0] == unet.seen[failing].index(TIMESTEPS - 1)


def test_recurrent_network_at_a_price_of_zero() -> None:
    prices = [torch.rand(2, 3) + 0.1 for _ in range(6)]
    prices[4][1, 2] = 0
    with pytest.raises(NonFiniteError) as raised:
        example("recurrent").train(nn.GRUCell(3, 4), nn.Linear(4, 1), prices)
    autopsy = raised.value.autopsy
    assert autopsy is not None and (autopsy.step, autopsy.op) == (4, "aten.log.default")
    assert autopsy.reproduced and autopsy.output is not None and autopsy.output.first_index == [1, 2]


def test_policy_gradient_whose_rewards_are_equal() -> None:
    rewards = iter([torch.randn(8), torch.randn(8)])
    observations = [torch.randn(8, 3) for _ in range(6)]
    with pytest.raises(NonFiniteError) as raised:
        example("policy").train(nn.Linear(3, 2), observations, lambda action: next(rewards, torch.ones(8)))
    autopsy = raised.value.autopsy
    assert autopsy is not None and (autopsy.step, autopsy.op, autopsy.kind) == (2, "aten.div.Tensor", "invalid")
    assert autopsy.reproduced and autopsy.source.startswith("policy.py:")


def test_lightning_with_a_batch_of_equal_values() -> None:
    batches = [(torch.randn(4, 3), torch.randn(4)) for _ in range(5)]
    batches[3][0][:, 1] = 2.0
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with pytest.raises(NonFiniteError) as raised:
        example("lightning_trainer").train(torch.utils.data.DataLoader(batches, batch_size=None), **quiet)
    autopsy = raised.value.autopsy
    assert autopsy is not None and (autopsy.step, autopsy.op, autopsy.kind) == (3, "aten.div.Tensor", "invalid")
    assert autopsy.reproduced and autopsy.source.startswith("lightning_trainer.py:")


@pytest.mark.parametrize("name", ["gan", "accelerate_loop", "diffusion", "recurrent", "policy", "lightning_trainer"])
def test_the_guide_shows_it(name: str) -> None:
    assert f'--8<-- "docs/examples/{name}.py"' in (ROOT / "docs" / "guide" / "watch.md").read_text()
