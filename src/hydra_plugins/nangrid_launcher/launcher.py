"""Hands the jobs of a Hydra multirun to nangrid.grid, which runs them as cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.nangrid_launcher.composer import JobComposer

if TYPE_CHECKING:
    from nangrid.grid.launch import Executor


class GridLauncher(Launcher):
    """Composes every job and hands plain configs to nangrid.grid, whose executor runs the cells."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composing needs. The task function is ignored: a cell's process runs nangrid's own."""
        self.compose = JobComposer(hydra_context.config_loader, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs. Their records are the result; Hydra gets an empty list."""
        from nangrid.grid.launch import launch

        launch(map(self.compose, job_overrides), self.executor)
        return []


class IsolatedLauncher(GridLauncher):
    """`hydra/launcher=isolated`: runs the cells on this machine, each in its own process."""

    def __init__(self, n_jobs: int = 1, timeout_s: float | None = None) -> None:
        from nangrid.grid.local import LocalExecutor

        super().__init__(LocalExecutor(n_jobs, timeout_s))
