"""Tells what kind of directory a path is, and answers for it."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from nangrid.records.autopsy import AUTOPSY
from nangrid.records.cell import REQUEST, RESULT
from nangrid.records.diagnosis import DIAGNOSES
from nangrid.records.errors import InputError
from nangrid.records.grid import GRID, GridDirectory, read_cell_record
from nangrid.records.output.answer import Answer
from nangrid.reporting.answer.folder import of_autopsy, of_trainer, of_watch, trainer_state, watched_folders


def answer_about(path: str, *, with_text: bool = True, reference: Sequence[str] = ()) -> Answer:
    """The answer about an autopsy folder, a cell, a grid, a diagnosis or a Trainer's output directory.

    `path` may also be a file in one of them, and the beginning of a cell's name. `reference`: the levels of the
    combination with which a grid's others are compared. InputError if nothing of it is there.
    """
    folder = _folder(Path(path).absolute())
    if _has(folder, GRID):
        from nangrid.reporting.answer.of_grid import of_grid  # the statistics of a grid take seconds to import

        return of_grid(GridDirectory.at(folder), reference, with_text=with_text)
    if _has(folder, RESULT) or _has(folder, REQUEST):
        from nangrid.reporting.answer.of_cell import of_cell, of_unfinished_cell

        record = read_cell_record(folder) if _has(folder, RESULT) else None
        if record:
            return of_cell(folder, record, with_text=with_text)
        if _has(folder, REQUEST):
            return of_unfinished_cell(folder)
    if _has(folder, AUTOPSY):
        return of_autopsy(folder, with_text=with_text)
    if watched := watched_folders(folder):
        return of_autopsy(watched[-1], with_text=with_text)
    if state := trainer_state(folder):
        return of_trainer(folder, state)
    if answer := of_watch(folder):
        return answer
    raise InputError(
        f"{folder} holds no autopsy, cell, grid or Trainer output: give the out_dir= of a watch, which exists once a "
        "run has failed, or the out= of a grid."
    )


def _has(folder: Path, name: str) -> bool:
    return os.path.lexists(folder / name)


def _folder(path: Path) -> Path:
    """The directory that a path means: its own, that of a file, or the only one whose name begins with it."""
    if path.is_file():
        return path.parents[1] if path.parent.name == DIAGNOSES else path.parent
    candidates = [] if path.exists() or not path.name else list(path.parent.glob(f"{glob.escape(path.name)}*"))
    if not path.exists() and len(candidates) != 1:
        raise InputError(f"{path} does not exist: give the directory of an autopsy, a cell or a grid.")
    return candidates[0] if candidates else path
