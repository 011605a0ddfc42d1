"""How do the jobs of a Hydra multirun become the cells of a grid?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from nangrid.grid.plan import plain_config, task_overrides

if TYPE_CHECKING:
    from nangrid.grid.launch import Executor


class GridLauncher(Launcher):
    """Composes every job and hands plain configs to nangrid.grid, which has a executor run the cells."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composing needs; a cell's process runs nangrid's own function, not Hydra's task."""
        self.loader = hydra_context.config_loader
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; their records are the result, nothing is returned to Hydra."""
        from nangrid.grid.launch import launch

        launch(self._compose(job_overrides), self.executor)
        return []

    def _compose(self, jobs: Sequence[Sequence[str]]) -> Iterator[tuple[dict[str, Any], list[str]]]:
        for overrides in jobs:
            config = self.loader.load_sweep_config(self.config, list(overrides))
            yield plain_config(config), task_overrides(config.hydra)


class IsolatedLauncher(GridLauncher):
    """`hydra/launcher=isolated`: on this machine."""

    def __init__(self, n_jobs: int = 1, timeout_s: float | None = None) -> None:
        from nangrid.grid.local import LocalExecutor

        super().__init__(LocalExecutor(n_jobs, timeout_s))
