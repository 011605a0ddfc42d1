"""Writes the autopsy and the snapshots of one run; a failed write is told, and never ends the run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from nangrid.records.autopsy import AUTOPSY, OPERANDS, SCRIPT, Autopsy, write_autopsy
from nangrid.records.start_from import FACTS, KEPT
from nangrid.watch.autopsy.replay import FROZEN
from nangrid.watch.state.snapshot import TENSORS, Snapshot

logger = logging.getLogger(__name__)

EARLIER = "earlier"
"""The folder to which the records of an earlier run in the same directory move."""
_RECORDS = (AUTOPSY, FACTS, TENSORS, OPERANDS, SCRIPT, KEPT, FROZEN)
SNAPSHOTS_KEPT = 2
"""Snapshots that stay on disk while all is finite."""


class RunDirectory:
    """The directory of one run: the snapshots kept of finite steps, and the records of failing ones."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: OSError | None = None
        """Why the autopsy or the snapshot of a failing step could not be written."""
        self._kept: list[Path] = []
        self._begun = False
        self._warned = False

    def keep(self, snapshot: Snapshot) -> None:
        """Save the snapshot of a finite step and delete the oldest; warns once if that is not possible."""
        folder = self.path / KEPT / str(snapshot.step)
        try:
            self._begin()
            snapshot.save(folder)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            self._warn(snapshot.step, error)
            return
        self._kept.append(folder)
        for old in self._kept[:-SNAPSHOTS_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        del self._kept[:-SNAPSHOTS_KEPT]

    def prepared(self, folder: str) -> Path | None:
        """The folder of a failing step's records, made if need be; None if that is not possible."""
        try:
            self._begin()
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.error = error
            return None
        return self.path / folder

    def write_autopsy(self, autopsy: Autopsy, folder: str) -> None:
        """Write the autopsy of a failing step; `error` says why if that is not possible."""
        self._write(folder, lambda directory: write_autopsy(directory, autopsy))

    def write(self, snapshot: Snapshot, folder: str) -> None:
        """Write the snapshot of a failing step; `error` says why if that is not possible."""
        self._write(folder, snapshot.save)

    def _write(self, folder: str, write: Callable[[Path], None]) -> None:
        if (directory := self.prepared(folder)) is None:
            return
        try:
            write(directory)
        except OSError as error:
            self.error = error

    @property
    def autopsy_place(self) -> str:
        """Where the autopsy of the onset is, in words."""
        if self.error is None:
            return f"{self.path}/{AUTOPSY}"
        return f"{self.path} cannot be written ({self.error.strerror or self.error}): the autopsy is on no disk."

    def _begin(self) -> None:
        """Before the first write, move the records of an earlier run away, which would be taken for this run's."""
        if self._begun:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        left = [path for name in _RECORDS if (path := self.path / name).exists()]
        if left:
            numbers = [int(path.name) for path in self.path.glob(f"{EARLIER}/*") if path.name.isdigit()]
            folder = self.path / EARLIER / str(max(numbers, default=-1) + 1)
            folder.mkdir(parents=True)
            for path in left:
                path.rename(folder / path.name)
            logger.warning("%s held the records of an earlier run: they are in %s now.", self.path, folder)
        self._begun = True

    def _warn(self, step: int, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "the snapshot of step %d could not be written to %s (%s): training goes on without it.",
                step,
                self.path,
                error.strerror or error,
            )
