"""What does Hydra make of some overrides, for commands that are not Hydra applications themselves?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from nangrid.cell.config import CONF_DIR, Config
from nangrid.grid.plan import plain_config


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The config of one cell, not yet checked; Hydra's own errors for what it cannot read."""
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return plain_config(compose("config", list(overrides)))


def key_of(override: str) -> str:
    """`dtype` of `dtype=bf16` and `+dtype=bf16`."""
    return override.partition("=")[0].lstrip("+~")
