"""Composes the jobs of a sweep from parts that Hydra composes once each."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, get_type_hints

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nangrid.cell.config import CONF_DIR, Config
from nangrid.grid.plan import plain_config, task_overrides

GROUPS = tuple(key for key, kind in get_type_hints(Config).items() if dataclasses.is_dataclass(kind))
"""Config groups of every cell; `experiment` is the one group that is added with a plus."""

Composed = tuple[dict[str, Any], list[str]]
"""A cell's plain config, and the overrides that led to it as they were typed."""


class JobComposer:
    """Composes a job exactly as Hydra would, at a fraction of the time.

    Hydra reads and merges all of conf/ again for every job, which takes 0.1 s. A level of conf/ fills the node of its
    own group and nothing else, so a job's config can be assembled: the nodes of its levels, composed once per level,
    and then its single fields. Anything else (another config directory, packages, added or deleted keys, overrides
    that Hydra refuses) is left to Hydra.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig) -> None:
        self.loader = loader
        self.master = master
        self._parse = functools.cache(OverridesParser.create(config_loader=loader).parse_override)
        self._composed = functools.cache(self._compose)
        self.reads_only_conf = _reads_only_conf(loader, master)

    def __call__(self, overrides: Sequence[str]) -> Composed:
        """Compose one job; Hydra's own errors for what it cannot compose."""
        if self.reads_only_conf and (assembled := self._assemble([self._parse(override) for override in overrides])):
            return assembled
        config = self.loader.load_sweep_config(self.master, list(overrides))
        return plain_config(config), task_overrides(config.hydra)

    def _assemble(self, overrides: list[Override]) -> Composed | None:
        """The job out of its parts; None where only Hydra knows how."""
        experiments = [o for o in overrides if o.type == OverrideType.ADD and o.key_or_group == "experiment"]
        changes = [o for o in overrides if o.type == OverrideType.CHANGE and o.package is None]
        levels = [o for o in changes if o.key_or_group in GROUPS and isinstance(o.value(), str)]
        fields = [o for o in changes if o.key_or_group not in GROUPS and _is_field(o.key_or_group)]
        if len(experiments) + len(levels) + len(fields) < len(overrides):
            return None
        if len({o.key_or_group for o in levels}) < len(levels):
            return None
        shared = tuple(str(o.input_line) for o in experiments)
        config = copy.deepcopy(self._composed(shared))
        try:
            for level in levels:
                group = level.key_or_group
                config[group] = self._composed((*shared, str(level.input_line)))[group]
            for override in fields:
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        except OmegaConfBaseException:
            return None  # Hydra says it in words that commands/refusal.py knows
        return plain_config(config), [str(o.input_line) for o in overrides]

    def _compose(self, overrides: tuple[str, ...]) -> DictConfig:
        config = self.loader.load_sweep_config(self.master, list(overrides))
        with open_dict(config):
            del config["hydra"]
        return config


def _is_field(key: str) -> bool:
    return key.split(".")[0] in get_type_hints(Config)


def _reads_only_conf(loader: ConfigLoader, master: DictConfig) -> bool:
    """Whether every level comes from conf/: elsewhere a level may have a defaults list or another package."""
    if master.hydra.searchpath or master.hydra.job.config_name != "config":
        return False
    main = [source.path for source in loader.get_sources() if source.provider not in ("hydra", "schema")]
    return main == [str(CONF_DIR)]
