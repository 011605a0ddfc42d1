"""What does Hydra make of some overrides, for commands that are not Hydra applications themselves?"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from nangrid.cell.config import CONF_DIR, SCIENTIFIC, Config, flattened
from nangrid.grid.plan import plain_config
from nangrid.grid.start_from import inherited


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The config of one cell, not yet checked; Hydra's own errors for what it cannot read."""
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return plain_config(compose("config", list(overrides)))


def with_run_levels(overrides: Sequence[str]) -> list[str]:
    """The overrides, behind those of the run that `start_from` goes on with where there is one."""
    wanted = inherited(overrides)
    if not wanted:
        return list(overrides)
    levels = [f"{key}={typed(value)}" for key, value in wanted.items() if key in SCIENTIFIC]
    plain, chosen = flattened(composed([])), flattened(composed(levels))
    needed = [key for key in wanted if (plain if key in SCIENTIFIC else chosen)[key] != wanted[key]]
    return [*(f"{key}={typed(wanted[key])}" for key in needed), *overrides]


def typed(value: Any) -> str:
    """A value as Hydra's command line takes it."""
    if isinstance(value, list):
        return f"[{','.join(map(typed, value))}]"
    if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value)


def key_of(override: str) -> str:
    """`dtype` of `dtype=bf16` and `+dtype=bf16`."""
    return override.partition("=")[0].lstrip("+~")
