"""Computes the cell_id: a hash of everything that decides a cell's numbers, and of nothing else.

Paths, tracker, launcher, horizon, threads and `out` do not count. A file that the config names counts by its content.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from nangrid.cell.config import CONF_DIR, PROCESSES, Config, factors
from nangrid.cell.interpreter import PYTHON, python_science
from nangrid.records.defaults import NOT_LISTED
from nangrid.records.safety.names import GROUPS
from nangrid.records.start_from import files_sha256, find_start

ID_DIGITS = 12


def cell_id(config: Config) -> str:
    """Id of the cell, 12 hex digits. Reads the data and the tokenizer; InputError if one of them is not available."""
    from nangrid.cell.data.chat import template_sha256
    from nangrid.cell.data.dataset import data_sha256
    from nangrid.cell.model.checkpoint import locate_checkpoint

    checkpoint = locate_checkpoint(config.model)
    science = factors(config) | {
        "data.sha256": data_sha256(config.data),
        "tokenizer.sha256": checkpoint.tokenizer_sha256,
    }
    del science["data.path"], science["data.template"]
    for key, default in (("model.compile", "off"), (PROCESSES, 1)):  # keys that were added later: existing ids stay
        if science[key] == default:
            del science[key]
    if template := template_sha256(config.data, checkpoint):
        science["data.template.sha256"] = template
    science |= _start(config) | python_science(config.python)
    if config.model.source == "hub" and Path(str(config.model.id)).expanduser().is_dir():
        science["model.id"] = directory_sha256(Path(checkpoint.path))
    return hash_science(science)


def hash_science(science: dict[str, Any]) -> str:
    """Id of a flattened scientific config; the order of its keys does not matter."""
    canonical = json.dumps(science, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:ID_DIGITS]


@functools.cache
def directory_sha256(directory: Path) -> str:
    """Hash of a model's files by name and content. Weights count: two fine-tuned models differ in nothing else."""
    return files_sha256(directory.iterdir())


def starred(config: Config) -> frozenset[str]:
    """Groups with an overridden field that their level's YAML fixes."""
    return frozenset(group for group in GROUPS if _overridden(group, vars(getattr(config, group))))


def cell_factors(config: Config) -> dict[str, Any]:
    """Factors as records and trackers show them: `bf16*` if a field of the level was overridden.

    A single process is not listed, as in the records of cells from before there could be several.
    """
    shown = factors(config, starred(config))
    if shown[PROCESSES] == NOT_LISTED[PROCESSES]:
        del shown[PROCESSES]
    python = {} if config.python is None else {PYTHON: config.python}
    return shown | _start(config) | python


def _start(config: Config) -> dict[str, Any]:
    """The run and step that the cell resumes from; empty for a run from its first step."""
    if config.start_from is None:
        return {}
    return find_start(config.start_from).factors()


def _overridden(group: str, fields: dict[str, Any]) -> bool:
    fixed = level_fields(group, fields["name"])
    return any(fields[key] != value for key, value in fixed.items())


@functools.cache
def level_fields(group: str, name: str) -> dict[str, Any]:
    """Fields that a level's YAML fixes; empty for a level from the user's config directory."""
    path = CONF_DIR / group / f"{name}.yaml"
    if not path.is_file():
        return {}
    fixed: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    return fixed
