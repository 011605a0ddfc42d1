"""Finds what a run can resume from: a snapshot of the watch, or a checkpoint of transformers' Trainer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nangrid.records.cell import REQUEST, RESULT, START_FROM, START_STEP, read_record
from nangrid.records.errors import InputError

SNAPSHOT, CHECKPOINT = "snapshot", "checkpoint"
KEPT = "kept"
"""The folder in which a watch keeps snapshots of finite steps, each in a folder named by the step's number."""
_FILES = {
    SNAPSHOT: ("snapshot.json", "snapshot.safetensors"),
    CHECKPOINT: ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
}
_WEIGHTS = "*.safetensors"
_DIGITS = 12


@dataclass(frozen=True)
class Start:
    """The saved state of a run before one of its steps."""

    folder: Path
    kind: str
    step: int
    """The step that runs first after resuming."""

    @property
    def file(self) -> str:
        """The file that belongs to this state alone."""
        return str(self.folder / _FILES[self.kind][0])

    def sha256(self) -> str:
        """Hash of the files that determine the resumed run, shortened to 12 hex digits."""
        paths = {self.folder / name for name in _FILES[self.kind]} | set(self.folder.glob(_WEIGHTS))
        return files_sha256(paths)[:_DIGITS]

    def factors(self) -> dict[str, str | int]:
        """The factors of a cell that resumes from here."""
        return {START_FROM: self.sha256(), START_STEP: self.step}

    @property
    def cell(self) -> Path | None:
        """The directory of the cell that saved this state; None if no cell did."""
        candidates = [self.folder, *self.folder.parents[:2]]
        return next((path for path in candidates if (path / REQUEST).is_file()), None)


def find_start(path: str) -> Start:
    """The state saved at `path`; for a cell, its last snapshot before the onset, else that of the failing step.

    `path` may also be a file of the state: `CELL/snapshot.json` selects the snapshot of the failing step. InputError if
    nothing can be resumed from there.
    """
    given = Path(path).expanduser().absolute()
    folder = given.parent if given.is_file() else given
    kept = kept_in(folder)
    if kept and not given.is_file():
        return find_start(str(kept[-1]))
    for kind, (facts, *_) in _FILES.items():
        if (folder / facts).is_file():
            return Start(folder, kind, _step(folder / facts, kind))
    record = read_record(folder) if (folder / RESULT).is_file() else None
    if record is not None and record.snapshot is not None:
        return find_start(str(folder / record.snapshot))
    raise InputError(
        f"start_from={path} holds neither a snapshot nor a checkpoint: give the directory of a cell that went "
        "non-finite, the out_dir of a watch, or a checkpoint-N of transformers' Trainer."
    )


def files_sha256(paths: Iterable[Path]) -> str:
    """Hash over the names and contents of files, in the order of their paths; other paths are skipped."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        with path.open("rb") as file:
            digest.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def kept_in(out_dir: Path) -> list[Path]:
    """The folders of the snapshots that a watch kept of finite steps, the earliest first."""
    folders = (facts.parent for facts in out_dir.glob(f"{KEPT}/*/{_FILES[SNAPSHOT][0]}"))
    return sorted((folder for folder in folders if folder.name.isdigit()), key=lambda folder: int(folder.name))


def _step(path: Path, kind: str) -> int:
    try:
        return int(json.loads(path.read_bytes())["step" if kind == SNAPSHOT else "global_step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give another start_from=.") from error
