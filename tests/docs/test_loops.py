"""The loops of the guide fail where they should, and name the line."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from nangrid import NonFiniteError

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("name", ["gan", "accelerate_loop"])
def test_the_guide_shows_it(name: str) -> None:
    assert f'--8<-- "docs/examples/{name}.py"' in (ROOT / "docs" / "guide" / "watch.md").read_text()
