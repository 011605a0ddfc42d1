import os

import pytest
import torch

DEVICE = os.environ.get("NANGRID_CUDA_TESTS_ON", "cuda")
"""`cpu` runs what needs no GPU on the CPU: to try the tests themselves on a machine without one."""


@pytest.fixture
def device() -> str:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return DEVICE


@pytest.fixture
def gpu(device: str) -> str:
    """The device, for what only a GPU can do."""
    if device != "cuda":
        pytest.skip("this needs a GPU")
    return device


@pytest.fixture(autouse=True)
def late(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, too, flags are read late, as on a GPU."""
    from nangrid.watch.deferred import DeferredInspector

    if device == "cpu":
        monkeypatch.setattr("nangrid.watch.watch.inspector_for", DeferredInspector)
