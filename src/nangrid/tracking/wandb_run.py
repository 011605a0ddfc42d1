"""How does a cell show up in W&B? One run a cell, which a failure of W&B itself can neither stop nor slow.

W&B's charts drop NaN, so what they plot has finite encodings: `nonfinite/<clock>` is 0 or 1 at every step,
and in the summary a censored cell has the steps it survived as `onset_step`, told apart by `censored` = 1.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from nangrid.records.cell import CLOCKS, CellRecord
from nangrid.records.errors import InputError

_CHARTED = ("loss", "grad_norm", "lr", "max_gradient", "max_update", "eval_loss")
_ID_LENGTH = 128
_PATIENCE_S = 10.0
"""How long a server may keep an online cell waiting, at its start and again at its end."""


class Run(Protocol):
    """Where a cell's steps and its record are shown."""

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Show one row of `history.parquet`."""

    def finish(self, record: CellRecord) -> None:
        """Show what became of the cell."""

    def crash(self) -> None:
        """Show that the cell ended without a record of its own."""


class NoRun:
    """tracker=none."""

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Show nothing."""

    def finish(self, record: CellRecord) -> None:
        """Show nothing."""

    def crash(self) -> None:
        """Show nothing."""


class WandbRun:
    """A W&B run. Its first failure is told on stderr and ends it; the cell goes on."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Log one row of `history.parquet`, with its finite encodings."""
        charted = {key: row[key] for key in _CHARTED if row.get(key) is not None}
        rung = {f"nonfinite/{clock}": int(bool(row.get(f"nonfinite_{clock}"))) for clock in CLOCKS}
        self._guard(lambda run: run.log(charted | rung, step=step))

    def finish(self, record: CellRecord) -> None:
        """Show outcome and ledger; the exit code is 0 for a NaN too: that is a result."""

        def finish(run: Any) -> None:
            run.config.update({"ledger": record.ledger}, allow_val_change=True)
            run.summary.update(summary(record))
            run.finish(exit_code=0)

        self._guard(finish)

    def crash(self) -> None:
        """End the run with exit code 1."""
        self._guard(lambda run: run.finish(exit_code=1))

    def _guard(self, action: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # whatever W&B raises, the cell is worth more than its picture
            self._run = None
            _warn(error)


def open_run(
    *,
    name: str,
    mode: str,
    project: str,
    entity: str | None,
    directory: Path,
    cell_id: str,
    grid_id: str,
    config: dict[str, Any],
) -> Run:
    """Start the run of a cell: `name` is wandb or none, `mode` offline or online, `config` the factors.

    W&B's files go to `directory`/wandb. InputError if wandb is asked for and not installed; if it does not
    start, the cell goes on without.
    """
    if name == "none":
        return NoRun()
    try:
        return WandbRun(
            _start(
                mode=mode,
                project=project,
                entity=entity,
                dir=str(directory),
                id=run_id(grid_id, cell_id),
                name=cell_id,
                group=grid_id,
                config=config,
            )
        )
    except ImportError as error:
        raise InputError("tracker=wandb needs wandb: pip install wandb, or type tracker=none.") from error
    except Exception as error:
        _warn(error)
        return NoRun()


def run_id(grid_id: str, cell_id: str) -> str:
    """`grid_id` and `cell_id` in the characters and the length that W&B takes; the cell's end survives."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{grid_id}-{cell_id}")[-_ID_LENGTH:]


def summary(record: CellRecord) -> dict[str, Any]:
    """The outcome in finite numbers: where no clock rang, `onset_step` is `steps_survived`."""
    return {
        "onset_step": record.steps_survived,
        "onset_clock": record.onset.clock if record.onset else "none",
        "censored": int(record.onset is None),
        "steps_survived": record.steps_survived,
        "status": record.status,
        "trains": int(record.trained),
        "ledger": record.ledger,
    }


def _start(**options: Any) -> Any:
    # names, not the module: a folder `wandb` in the working directory imports as a module without any
    from wandb import Settings, init, setup

    # init's own settings come too late to keep it from asking for a key, and from telemetry when offline
    setup(Settings(silent=True, mode=options["mode"]))
    settings = Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        symlink=False,
        init_timeout=_PATIENCE_S,
        finish_timeout=_PATIENCE_S,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    return init(reinit="finish_previous", resume="allow", settings=settings, **options)


def _warn(error: Exception) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    print(f"warning: the cell goes on without W&B: {reason}", file=sys.stderr)
