"""Composes a config from overrides, for the commands that are not Hydra applications."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
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
    """The overrides, after those levels of the run that `start_from` resumes which differ from the defaults."""
    return [*level_overrides(inherited(overrides)), *overrides]


def level_overrides(run: Mapping[str, Any]) -> list[str]:
    """Overrides that lead to these levels, a run's flattened config or a part of it: one per level that differs."""
    if not run:
        return []
    groups = {key: level for key, level in run.items() if key in SCIENTIFIC}
    defaults = flattened(composed([]))
    with_groups = flattened(composed(_as_overrides(groups)))  # the fields' values once the run's levels are chosen
    differing = {key: value for key, value in run.items() if value != (defaults if key in groups else with_groups)[key]}
    return _as_overrides(differing)


def _as_overrides(levels: Mapping[str, Any]) -> list[str]:
    return [to_override(key, value) for key, value in levels.items()]


def key_of(override: str) -> str:
    """The key that an override sets: `dtype` for `dtype=bf16` and `+dtype=bf16`."""
    return override.partition("=")[0].lstrip("+~")
