"""Which cells does a command line with comma-separated levels ask for?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn


class GridSweeper(BasicSweeper):
    """Every combination of the levels given, like Hydra's own sweeper.

    `params` are the levels an experiment file asks for; the command line wins where both name a key. Unlike
    its parent it writes no multirun.yaml, and leaves composing (and so checking) the cells to the launcher,
    which does it once, for all of them, before it starts the first.
    """

    def __init__(self, params: dict[str, Any] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Hand every combination to the launcher."""
        assert self.launcher is not None and self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        (combinations,) = self.split_arguments(overrides, max_batch_size=None)
        return self.launcher.launch(combinations, initial_job_idx=0)
