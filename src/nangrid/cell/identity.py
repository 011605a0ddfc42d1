"""When are two requests the same cell? A hash over what decides the numbers, and nothing else.

Left out: paths, tracker, launcher, horizon, threads and `out`. Where the config names a file, the file's
content counts in its stead.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nangrid.cell.config import CONF_DIR, SCIENTIFIC, Config, factors
from nangrid.records.start_from import files_sha256, find_start

ID_DIGITS = 12


def cell_id(config: Config) -> str:
    """12 hex digits; reads the data and the tokenizer, and raises InputError where they are not to be had."""
    from nangrid.cell.data.chat import template_sha256
    from nangrid.cell.data.dataset import data_sha256
    from nangrid.cell.model.checkpoint import locate_checkpoint

    checkpoint = locate_checkpoint(config.model)
    science = factors(config) | {
        "data.sha256": data_sha256(config.data),
        "tokenizer.sha256": checkpoint.tokenizer_sha256,
    }
    del science["data.path"], science["data.template"]
    if template := template_sha256(config.data, checkpoint):
        science["data.template.sha256"] = template
    science |= _start(config)
    if config.model.source == "hub" and Path(str(config.model.id)).expanduser().is_dir():
        science["model.id"] = directory_sha256(Path(checkpoint.path))
    return hash_science(science)


def hash_science(science: dict[str, Any]) -> str:
    """The id of a flattened scientific config; the order of its keys does not matter."""
    canonical = json.dumps(science, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:ID_DIGITS]


@functools.cache
def directory_sha256(directory: Path) -> str:
    """A model's files by name and content, weights included: two fine-tuned models differ in nothing else."""
    return files_sha256(directory.iterdir())


def starred(config: Config) -> frozenset[str]:
    """Groups of which a field that the level's own YAML fixes was overridden."""
    return frozenset(group for group in SCIENTIFIC[1:] if _overridden(group, vars(getattr(config, group))))


def cell_factors(config: Config) -> dict[str, Any]:
    """The factors as records and trackers show them: `bf16*` where a level is not quite itself."""
    return factors(config, starred(config)) | _start(config)


def _start(config: Config) -> dict[str, Any]:
    """Where another run is gone on with; nothing for a run from its first step."""
    if config.start_from is None:
        return {}
    return find_start(config.start_from).factors()


def _overridden(group: str, fields: dict[str, Any]) -> bool:
    fixed = level_fields(group, fields["name"])
    return any(fields[key] != value for key, value in fixed.items())


@functools.cache
def level_fields(group: str, name: str) -> dict[str, Any]:
    """The fields that a level's YAML fixes; none for a level from a config directory of the user's own."""
    path = CONF_DIR / group / f"{name}.yaml"
    if not path.is_file():
        return {}
    fixed: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    return fixed
