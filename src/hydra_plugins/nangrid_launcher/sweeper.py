"""Expands comma-separated levels and blocks of levels into the jobs of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.nangrid_launcher.launcher import GridLauncher
from nangrid.records.errors import InputError

MOST_CELLS = 100_000
"""Cells of one grid: planning one takes a millisecond, running it seconds."""


class GridSweeper(BasicSweeper):
    """Runs every combination of the given levels, like Hydra's own sweeper.

    `params` are the levels that an experiment file sweeps. `blocks` are for designs that are no single product: each
    is a line of levels, and the grid is the union of their products. If several set a key, blocks override params,
    and the command line overrides both. Unlike its parent it writes no multirun.yaml, and it leaves composing to the
    launcher, which composes and checks all cells before it starts the first.
    """

    def __init__(self, params: dict[str, Any] | None = None, blocks: Sequence[str] = ()) -> None:
        super().__init__(max_batch_size=None, params=params)
        self.blocks = blocks or [""]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """InputError for a launcher that runs several cells in one process."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if not isinstance(self.launcher, GridLauncher):
            self.launcher = _on_a_cluster(self.launcher, config)
            self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Hand every combination to the launcher."""
        assert self.launcher is not None and self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        cells: list[list[str]] = []
        for block in self.blocks:
            overrides = parser.parse_overrides([*self._parse_config(), *block.split(), *arguments])
            _refuse_too_many(overrides)
            (product,) = self.split_arguments(overrides, max_batch_size=None)
            cells += product
        return self.launcher.launch(cells, initial_job_idx=0)


def _refuse_too_many(overrides: Sequence[Override]) -> None:
    """InputError before a product is written out that no machine could run."""
    cells = math.prod(_number_of_levels(override) for override in overrides if override.is_sweep_override())
    if cells > MOST_CELLS:
        raise InputError(f"The sweep has {cells:,} cells, and a grid at most {MOST_CELLS:,}: give fewer levels.")


def _number_of_levels(override: Override) -> int:
    values = override.value()
    if isinstance(values, RangeSweep):
        return max(0, math.ceil((values.stop - values.start) / values.step))  # type: ignore[operator]
    return len(values.list) if isinstance(values, ChoiceSweep) else 1


def _on_a_cluster(launcher: Any, config: DictConfig) -> GridLauncher:
    """A launcher with hydra-submitit-launcher's parameters that runs and records cells as nangrid does."""
    if not hasattr(launcher, "_EXECUTOR"):
        name = OmegaConf.select(config, "hydra.runtime.choices.hydra/launcher")
        raise InputError(
            f"hydra/launcher={name} runs cells in one process, where they affect each other: "
            "take hydra/launcher=isolated (the default) or submitit_slurm."
        )
    from nangrid.grid.cluster import Cluster

    return GridLauncher(Cluster(launcher._EXECUTOR, launcher.params))
