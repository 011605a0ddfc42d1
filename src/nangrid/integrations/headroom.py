"""How does a Trainer look at the headroom of its steps?"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from nangrid.watch import Headroom
from nangrid.watch.headroom import Extreme


class HeadroomCallback(TrainerCallback):
    """Has `headroom` look at each step that is due."""

    def __init__(self, headroom: Headroom) -> None:
        self.headroom = headroom
        self.found: dict[int, list[Extreme]] = {}
        """What was seen, by step; whoever shows a step takes it out."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the first micro-batch."""
        self.headroom.begin(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last backward pass."""
        if found := self.headroom.end(state.global_step):
            self.found[state.global_step] = found
