"""Turns composed configs into checked cell plans, and tells which cells are done."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nangrid.cell.config import Config, DataConfig
from nangrid.cell.data.documents import load_documents
from nangrid.cell.device import refuse_unsupported
from nangrid.cell.identity import cell_factors, cell_id
from nangrid.cell.interpreter import absolute_python
from nangrid.cell.levels import as_config
from nangrid.cell.script.config import ScriptConfig
from nangrid.grid.request import SCRIPT, Request, requested_config
from nangrid.grid.start_from import check_origin
from nangrid.records.cell import CellRecord
from nangrid.records.codec import decode
from nangrid.records.errors import InputError
from nangrid.records.safety.secret import refuse_secrets
from nangrid.records.start_from import find_start


@dataclass(frozen=True)
class CellPlan:
    """One cell of a sweep, ready to be run."""

    config: Config | ScriptConfig
    overrides: list[str]
    """As typed on the command line, without Hydra's own keys."""
    cell_id: str
    title: str = "defaults"
    """What a reader sees in place of the cell_id: the overrides that set it apart."""

    @property
    def factors(self) -> dict[str, Any]:
        """Factors as the cell's record will show them."""
        return self.config.factors() if isinstance(self.config, ScriptConfig) else cell_factors(self.config)

    @property
    def cell_config(self) -> Config:
        """The config of a cell composed from conf/; InputError for a run that the user's own script builds."""
        if isinstance(self.config, ScriptConfig):
            raise InputError(f"{self.title} is a run of {self.config.script}, and only that script can build it again.")
        return self.config

    def directory(self) -> Path:
        """The cell's directory, whether it exists or not."""
        return Path(self.config.out).absolute() / "cells" / self.cell_id


def plan_cell(composed: dict[str, Any], overrides: list[str]) -> CellPlan:
    """Check one composed config, against this machine too, and give it its id."""
    refuse_secrets(composed)
    refuse_secrets(overrides, "an override")
    config = as_config(composed)
    refuse_unsupported(config)
    if config.python is not None:
        config = replace(config, python=absolute_python(config.python))
    if config.start_from is not None:
        config = replace(config, start_from=find_start(config.start_from).file)
        check_origin(config)
    if config.data.name == "jsonl":
        _check_jsonl(str(config.data.path), config.data.labels)
    return CellPlan(config, overrides, cell_id(config))


def requested_plan(request: Request, cell: Path) -> CellPlan:
    """The plan of the cell in the directory `cell`, which may have been moved since the request was written."""
    config: Config | ScriptConfig
    if request.kind == SCRIPT:
        config = decode(ScriptConfig, request.config | {"out": str(cell.absolute().parents[1])})
    else:
        config = requested_config(request, cell)
    return CellPlan(config, request.overrides, request.cell_id, request.title)


@functools.cache
def _check_jsonl(path: str, labels: str) -> None:
    """Refuse a malformed line before anything is created. Cached: many cells may read the same file."""
    load_documents(DataConfig(name="jsonl", path=path, labels=labels))


def plain_config(composed: DictConfig) -> dict[str, Any]:
    """The composed config as plain values, interpolations resolved, without Hydra's own node."""
    cell = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    plain = OmegaConf.to_container(cell, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def task_overrides(hydra_config: Any) -> list[str]:
    """The cell's overrides as they were typed: `out=${oc.env:HOME}/grid` keeps its text."""
    overrides = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    return overrides


def one_grid(plans: list[CellPlan]) -> list[CellPlan]:
    """The plans without duplicates; of two that differ only in the horizon, the longer one.

    InputError if they disagree on a key that belongs to the grid as a whole.
    """
    for key in ("out", "resume", "dry_run"):
        values = sorted({str(getattr(plan.config, key)) for plan in plans})
        if len(values) > 1:
            raise InputError(f"{key}={','.join(values)} means several grids at once: give {key} one value.")
    unique: dict[str, CellPlan] = {}
    for plan in plans:
        known = unique.setdefault(plan.cell_id, plan)
        if known.config.horizon < plan.config.horizon:
            unique[plan.cell_id] = plan
    return _titled(list(unique.values()))


def _titled(plans: list[CellPlan]) -> list[CellPlan]:
    """The plans with titles: the overrides that not all cells share, or all overrides of a single cell."""
    shared = set.intersection(*(set(plan.overrides) for plan in plans)) if len(plans) > 1 else set()
    titles = [" ".join(override for override in plan.overrides if override not in shared) for plan in plans]
    return [replace(plan, title=title or plan.title) for plan, title in zip(plans, titles, strict=True)]


def is_done(plan: CellPlan, record: CellRecord | None, resume: str | None = None) -> bool:
    """Whether the record answers the request, so that the cell need not run. `resume` defaults to the plan's."""
    resume = resume or plan.config.resume
    if record is None or resume == "restart":
        return False
    if record.status in ("error", "timeout"):
        return resume != "errored"
    return record.status == "nonfinite" or record.horizon >= plan.config.horizon
