"""What happens in a cell whose steps a script's own loop takes, with a Watch?"""

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


class SeenEnoughError(BaseException):
    """The loop has taken the steps that were asked for. No Exception: a script that catches those goes on otherwise."""


class OwnLoop(WatchObserver):
    """Hosts the one Watch of a loop; see nangrid.watch.watch.WatchObserver."""

    def __init__(self, config: ScriptConfig, out_dir: Path, on_step: Callable[[StepReading], None]) -> None:
        super().__init__(out_dir)
        self.config = config
        self.on_step = on_step
        self.watch: Watch | None = None
        self.ledger: Ledger
        self.headroom: Headroom

    def on_watch_created(self, watch: Watch) -> None:
        """Read the model as it is before the first step."""
        script = self.config.script
        if self.watch is not None:
            raise InputError(f"{script} made two nangrid.Watch: let one take all steps of the run.")
        if self.config.start_from is not None:
            raise InputError(
                f"start_from goes on with the Trainer's data, and {script} trains in a loop of its own, whose place in "
                "its data is not known: leave start_from out, or let the function return a Trainer."
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
            raise SeenEnoughError
        self.headroom.begin(step)

    def backward_done(self, step: int) -> None:
        """Note the magnitudes if the step was due."""
        self.headroom.end(step)

    def complete(self, readings: Sequence[StepReading]) -> None:
        """Pass them on."""
        for reading in readings:
            self.on_step(reading)


def read_ledger(model: nn.Module, autocast: torch.dtype | None, device: str, findings: Sequence[Finding]) -> Ledger:
    """Of a script's model before its first step, which tells the rest."""
    ledger = read_model(model, autocast)
    ledger.arithmetic = read_arithmetic(device, None)
    ledger.preflight = [str(finding) for finding in findings]
    observe_residual(model, ledger)
    return ledger


def _observe_autocast(model: nn.Module, device: str, ledger: Ledger) -> None:
    """Autocast is the loop's own: what the first call of the model runs under is noted."""

    def note(module: nn.Module, args: Any) -> None:
        if torch.is_autocast_enabled(device):
            ledger.autocast = dtype_name(torch.get_autocast_dtype(device))
        handle.remove()

    handle = model.register_forward_pre_hook(note)
