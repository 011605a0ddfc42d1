"""Logs each cell as one W&B run, without letting W&B or its server stop or slow the cell."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from nangrid.records.autopsy import OPERANDS, SCRIPT
from nangrid.records.cell import CellRecord
from nangrid.records.errors import InputError
from nangrid.records.output.answer import Finding
from nangrid.records.safety.command import typed
from nangrid.records.safety.text import say
from nangrid.tracking.encodings import alert, answer, bits_left, charted, summary

_ID_LENGTH = 128
_PATIENCE_S = 10.0
"""Seconds that a server has to answer, at the start of a run and again at its end."""

Action = Callable[[Any], None]


class Run(Protocol):
    """Shows the steps and the record of a cell."""

    def log(self, step: int, row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        """Show one row of `history.parquet`, and the headroom samples of that step, if any."""

    def finish(self, record: CellRecord, finding: Finding | None = None) -> None:
        """Show the outcome of the cell, and what its autopsy found."""

    def crash(self) -> None:
        """Show that the cell crashed without a record."""


class NoRun:
    """tracker=none."""

    def log(self, step: int, row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        """Show nothing."""

    def finish(self, record: CellRecord, finding: Finding | None = None) -> None:
        """Show nothing."""

    def crash(self) -> None:
        """Show nothing."""


class WandbRun:
    """A W&B run in its own thread, which opens while the cell is built; logged rows are queued.

    `start` makes the run. The first failure is reported on stderr and ends the run, but not the cell.
    """

    def __init__(self, start: Callable[[], Any], factors: Mapping[str, Any], *, what: str = "the cell") -> None:
        self._factors, self._what = factors, what
        self._actions: SimpleQueue[Action | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(start,), daemon=True)
        self._thread.start()

    def log(self, step: int, row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        """Log one row of `history.parquet` with its finite encodings."""
        shown = charted(row) | bits_left(samples)
        self._actions.put(lambda run: run.log(shown, step=step, commit=True))

    def finish(self, record: CellRecord, finding: Finding | None = None) -> None:
        """Show outcome, ledger and answer, and alert if there was an onset.

        The exit code is 0 even for a NaN, which is a result.
        """

        def finish(run: Any) -> None:
            run.config.update({"ledger": record.ledger}, allow_val_change=True)
            run.summary.update(summary(record))
            if finding is not None:
                _show(run, finding)
            if record.onset is not None:
                run.alert(*alert(record, finding, self._factors), level="WARN")
            finish_run(run, 0)

        self.end(finish)

    def crash(self) -> None:
        """End the run with exit code 1."""
        self.end(lambda run: finish_run(run, 1))

    def end(self, last: Action) -> None:
        """Do this as the last thing with the run; it finishes the run by `finish_run`."""
        self._actions.put(last)
        self._actions.put(None)
        # W&B limits how long it waits for its server (up to twice here), but not for its own local service
        self._thread.join(3 * _PATIENCE_S)
        if self._thread.is_alive():
            _warn(f"{self._what} continues without W&B", "its service does not answer")

    def _work(self, start: Callable[[], Any]) -> None:
        try:
            run = start()
            while action := self._actions.get():
                action(run)
        except Exception as error:  # no error of W&B may cost the cell
            _warn(f"{self._what} continues without W&B", error)


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

    W&B's files go to `directory`/wandb. An online run that its server rejects continues offline. Under `wandb agent`
    the run is the agent's, and project and ids are ignored. InputError if wandb is requested but not installed.
    """
    if name == "none":
        return NoRun()
    try:
        # import a name, because a folder `wandb` in the working directory imports as an empty module
        from wandb import init  # noqa: F401
    except ImportError as error:
        raise InputError("tracker=wandb needs wandb: pip install wandb, or type tracker=none.") from error
    options = {
        "project": project,
        "entity": entity,
        "dir": str(directory),
        "id": run_id(grid_id, cell_id),
        "name": cell_id,
        "group": grid_id,
        "config": config,
    }
    return WandbRun(lambda: start_run(mode, options), config)


def run_id(grid_id: str, cell_id: str) -> str:
    """`grid_id` and `cell_id` in W&B's alphabet and length; the end of the cell_id is always kept."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{grid_id}-{cell_id}")[-_ID_LENGTH:]


def start_run(mode: str, options: dict[str, Any]) -> Any:
    """Open a run with these options of `wandb.init`; one that the server rejects is kept offline."""
    from wandb import teardown

    # W&B also sends its own errors to a server, and waits for that one at the end of a process
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if mode == "online":
        try:
            return _init("online", options)
        except Exception as error:
            sync = f"{typed('wandb sync', options['dir'])}/wandb/offline-run-*"
            _warn(f"the W&B run is kept offline (upload it with `{sync}`)", error)
            teardown()  # its local service still holds the id
    return _init("offline", options)


def _init(mode: str, options: dict[str, Any]) -> Any:
    from wandb import Settings, init, setup

    # the settings given to init come too late to stop it from asking for a key, and from telemetry when offline
    setup(Settings(silent=True, mode=mode))
    settings = Settings(
        silent=True,
        console="off",
        disable_code=True,
        disable_git=True,
        save_code=False,
        symlink=False,
        init_timeout=_PATIENCE_S,
        finish_timeout=_PATIENCE_S,
        finish_timeout_raises=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        x_transaction_log_flush_interval=1.0,  # `wandb sync` stops at a run that was killed before its first
    )
    return init(reinit="finish_previous", resume="allow", settings=settings, **options | {"mode": mode})


def _show(run: Any, finding: Finding) -> None:
    """Show the finding in the summary and as a table, and keep the files that make the operation fail alone."""
    from wandb import Artifact, Table

    told = answer(finding)
    run.summary.update({key.replace(" ", "_"): text for key, text in told.items()})
    run.log({"autopsy": Table(columns=["question", "answer"], data=[[*pair] for pair in told.items()])})
    kept = Artifact(f"autopsy-{run.id}", type="autopsy", metadata=told)
    for name in (SCRIPT, OPERANDS) if finding.operand_script else ():
        # immutable: W&B uploads the file from where it is, rather than copying it to the user's home first
        kept.add_file(str(Path(str(finding.operand_script)).with_name(name)), policy="immutable")
    run.log_artifact(kept)


def finish_run(run: Any, exit_code: int) -> None:
    """Finish the run; a warning names the command that uploads what the server did not accept."""
    log = Path(run.settings.log_internal)
    upload = typed("wandb sync --include-online", run.settings.sync_dir)
    try:
        run.finish(exit_code=exit_code)
        # W&B reports a server that rejects a run half-way only in its log
        accepted = "filestream: fatal error" not in log.read_text()
    except TimeoutError:
        accepted = False
    if not accepted:
        _warn("W&B's server did not accept the whole run", f"upload it with `{upload}`")


def _warn(consequence: str, reason: object) -> None:
    why = " ".join(str(reason).split()) or type(reason).__name__
    say(f"warning: {consequence}: {why}", error=True)
