"""Runs a cell whose steps are taken by the training loop of a user's script, under its Watch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nangrid.cell.script.config import ScriptConfig
from nangrid.records.errors import InputError
from nangrid.watch import Finding, Headroom, Ledger, StepReading, Watch, preflight
from nangrid.watch.ledger import observe_residual, read_arithmetic, read_model
from nangrid.watch.preflight import settings_of
from nangrid.watch.state.tensors import dtype_name
from nangrid.watch.watch import WatchObserver


class HorizonReachedError(BaseException):
    """Ends a loop at the horizon. Not an Exception, because scripts catch those and continue."""


class ScriptLoop(WatchObserver):
    """Observes the only Watch of a script's loop, gives it the cell's directory, and ends the loop at the horizon."""

    def __init__(self, config: ScriptConfig, out_dir: Path, on_step: Callable[[StepReading], None]) -> None:
        super().__init__(out_dir)
        self.config = config
        self.on_step = on_step
        self.watch: Watch | None = None
        self.ledger: Ledger
        self.headroom: Headroom

    def on_watch_created(self, watch: Watch) -> None:
        """Read the ledger and run the preflight before the first step."""
        script = self.config.script
        if self.watch is not None:
            raise InputError(f"{script} made two nangrid.Watch: let one take all steps of the run.")
        if self.config.start_from is not None:
            raise InputError(
                f"start_from needs a Trainer, because the position of a plain loop in its data is unknown: leave "
                f"start_from out, or let {script} return a Trainer."
            )
        self.watch = watch
        model = watch.inspector.step.model
        device = next(iter(watch.inspector.step.trainables.values())).device.type
        self.ledger = read_ledger(model, None, device, preflight(model, [], settings_of(None), trial=False))
        _observe_autocast(model, device, self.ledger)
        self.headroom = Headroom(model)

    def begin(self, step: int) -> None:
        """End the loop at the horizon."""
        if step >= self.config.horizon:
            raise HorizonReachedError
        self.headroom.begin(step)

    def backward_done(self, step: int) -> None:
        """Take the headroom sample of this step if one is due."""
        self.headroom.end(step)

    def complete(self, readings: Sequence[StepReading]) -> None:
        """Pass the finished steps on."""
        for reading in readings:
            self.on_step(reading)


def read_ledger(model: nn.Module, autocast: torch.dtype | None, device: str, findings: Sequence[Finding]) -> Ledger:
    """Ledger of a script's model before its first step; the first forward pass completes it."""
    ledger = read_model(model, autocast)
    ledger.arithmetic = read_arithmetic(device, None)
    ledger.preflight = [str(finding) for finding in findings]
    observe_residual(model, ledger)
    return ledger


def _observe_autocast(model: nn.Module, device: str, ledger: Ledger) -> None:
    """Record the autocast dtype that the loop has set when it first calls the model."""

    def note(module: nn.Module, args: Any) -> None:
        if torch.is_autocast_enabled(device):
            ledger.autocast = dtype_name(torch.get_autocast_dtype(device))
        handle.remove()

    handle = model.register_forward_pre_hook(note)
