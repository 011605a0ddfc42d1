import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import wandb

from nangrid.tracking import wandb_run

if TYPE_CHECKING:
    from fake_server import FakeServer

KEY = "0123456789abcdef" * 2 + "01234567"
PATIENCE_S = 1.5


@pytest.fixture(autouse=True)
def wandb_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account, no server, little patience, and no file outside of the test's directory."""
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    home = tmp_path / "home"
    home.mkdir()
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setattr(wandb_run, "_PATIENCE_S", PATIENCE_S)
    yield
    wandb.teardown()  # wandb reads the environment once


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The user is logged in."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return KEY


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> "Iterator[FakeServer]":
    """The server that W&B will talk to."""
    from fake_server import FakeServer

    fake = FakeServer()
    monkeypatch.setenv("WANDB_BASE_URL", fake.url)
    yield fake
    fake.close()
