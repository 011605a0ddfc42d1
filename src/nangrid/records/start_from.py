"""Finds what a run can resume from: a snapshot of the watch, or a checkpoint of transformers' Trainer."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nangrid.records.cell import MOST_STEPS, REQUEST, RESULT, START_FROM, START_STEP, CellRecord, read_record
from nangrid.records.errors import InputError
from nangrid.records.reader import unreadable
from nangrid.records.safety.files import inside, open_regular, parse_json, read_bounded

SNAPSHOT, CHECKPOINT = "snapshot", "checkpoint"
FACTS = "snapshot.json"
KEPT = "kept"
"""The folder in which a watch keeps snapshots of finite steps, each in a folder named by the step's number."""
_FILES = {
    SNAPSHOT: (FACTS, "snapshot.safetensors"),
    CHECKPOINT: ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
}
_WEIGHTS = ("*.safetensors", "*model*.bin")
FACTS_BYTES = 64 * 2**20
"""Size of the largest snapshot.json or trainer_state.json, which hold a few numbers per step."""
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
        return files_sha256(self.files)[:_DIGITS]

    @property
    def files(self) -> set[Path]:
        """The files that determine the resumed run; some need not exist."""
        weights = {path for pattern in _WEIGHTS for path in self.folder.glob(pattern)}
        return {self.folder / name for name in _FILES[self.kind]} | weights

    def factors(self) -> dict[str, str | int]:
        """The factors of a cell that resumes from here."""
        return {START_FROM: self.sha256(), START_STEP: self.step}

    @property
    def cell(self) -> Path | None:
        """The directory of the cell that saved this state; None if no cell did."""
        candidates = [self.folder, *self.folder.parents[:3]]  # CELL/rank1/kept/16
        # anything of that name counts: a run must not silently start from the default levels
        return next((path for path in candidates if os.path.lexists(path / REQUEST)), None)


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
            return _checked(Start(folder, kind, _step(folder / facts, kind)))
    record = read_record(folder) if folder.is_dir() else None
    if record is not None and record.snapshot is not None:
        return find_start(str(snapshot_of(folder, record)))
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
    folders = (facts.parent for facts in out_dir.glob(f"{KEPT}/*/{FACTS}"))
    kept = (folder for folder in folders if re.fullmatch("[0-9]{1,12}", folder.name) and not folder.is_symlink())
    return sorted(kept, key=lambda folder: int(folder.name))


def _checked(start: Start) -> Start:
    """The state; InputError if one of its files is a device, or a link to another directory."""
    for path in sorted(start.files):
        try:
            open_regular(path).close()
        except FileNotFoundError:
            continue  # whoever needs it says so
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): give another start_from=.") from error
    return start


def snapshot_of(cell: Path, record: CellRecord) -> Path:
    """The snapshot that the record of a cell names; RecordError if that is no snapshot of this cell's."""
    try:
        path = inside(cell, str(record.snapshot))
    except ValueError as error:
        raise unreadable(cell / RESULT, str(error)) from error
    if path.name != FACTS or not path.is_file():
        raise unreadable(cell / RESULT, f"its snapshot {record.snapshot!r:.80} is missing")
    return path


def _step(path: Path, kind: str) -> int:
    key = "step" if kind == SNAPSHOT else "global_step"
    try:
        step = parse_json(read_bounded(path, FACTS_BYTES), constants=True)[key]
        if type(step) is not int or not 0 <= step <= MOST_STEPS:
            raise ValueError(f"{key} is {step!r:.60}, not a number of steps")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give another start_from=.") from error
    return step
