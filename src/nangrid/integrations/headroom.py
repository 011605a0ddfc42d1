"""Samples the headroom of a Trainer's steps."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from nangrid.watch import Headroom
from nangrid.watch.headroom import Extreme


class HeadroomCallback(TrainerCallback):
    """Tells `headroom` where each step begins and where its backward pass ends."""

    def __init__(self, headroom: Headroom) -> None:
        self.headroom = headroom
        self.samples: dict[int, list[Extreme]] = {}
        """Largest magnitudes by step. The reader removes a step's entry once it has shown it."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called before the first micro-batch."""
        self.headroom.begin(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called after the last backward pass."""
        if extremes := self.headroom.end(state.global_step):
            self.samples[state.global_step] = extremes
