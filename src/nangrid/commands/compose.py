"""What does Hydra make of some overrides, for commands that are not Hydra applications themselves?"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from nangrid.cell.config import CONF_DIR, SCIENTIFIC, Config, flattened, to_override
from nangrid.grid.plan import plain_config
from nangrid.grid.start_from import inherited


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The config of one cell, not yet checked; Hydra's own errors for overrides that it refuses."""
    return copy.deepcopy(_composed(tuple(overrides)))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    # Hydra reads and merges all of conf/ again for every call, which takes 0.1 s; a search plans the same cell often.
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return plain_config(compose("config", list(overrides)))


def with_run_levels(overrides: Sequence[str]) -> list[str]:
    """The overrides, behind those of the run that `start_from` goes on with where there is one."""
    wanted = inherited(overrides)
    if not wanted:
        return list(overrides)
    levels = [to_override(key, value) for key, value in wanted.items() if key in SCIENTIFIC]
    plain, chosen = flattened(composed([])), flattened(composed(levels))
    needed = [key for key in wanted if (plain if key in SCIENTIFIC else chosen)[key] != wanted[key]]
    return [*(to_override(key, wanted[key]) for key in needed), *overrides]


def key_of(override: str) -> str:
    """`dtype` of `dtype=bf16` and `+dtype=bf16`."""
    return override.partition("=")[0].lstrip("+~")
