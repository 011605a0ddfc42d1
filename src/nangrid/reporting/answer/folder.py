"""Answers about the folder of a watch, and about the output directory of transformers' Trainer."""

from __future__ import annotations

import math
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nangrid.records.autopsy import AUTOPSY, read_autopsy
from nangrid.records.errors import InputError
from nangrid.records.explain.finding import finding_of
from nangrid.records.output.answer import FAILED, HEALTHY, Answer, Finding
from nangrid.records.reader import unreadable
from nangrid.records.safety.command import typed
from nangrid.records.safety.files import is_own_folder, parse_json, read_bounded
from nangrid.records.start_from import FACTS_BYTES, kept_in

_STATE = "trainer_state.json"
_PACKAGES = ("nangrid", "torch", "transformers", "peft", "bitsandbytes", "accelerate")


def of_autopsy(folder: Path, *, with_text: bool) -> Answer:
    """The answer of the autopsy in a folder, which a watch in the user's own script wrote."""
    autopsy = read_autopsy(folder)
    if autopsy is None:
        raise unreadable(folder / AUTOPSY, "it is missing")
    finding = finding_of(autopsy, folder, with_text=with_text)
    script = finding.operand_script
    return Answer(
        about="autopsy",
        path=str(folder),
        outcome=FAILED,
        headline=finding.happened,
        summary=sentence_of(finding),
        findings=[finding],
        unchecked=["which settings cause it: one run cannot tell, nangrid.diagnose compares it with one that trains"],
        next=typed("python", script) if script else "",
        environment=versions_here(),
    )


def sentence_of(finding: Finding) -> str:
    """What happened in one run, in plain English."""
    place = f" The origin is {finding.where}." if finding.operation else " The origin was not found."
    return f"{finding.happened} {finding.title}.{place}"


def watched_folders(folder: Path) -> list[Path]:
    """Folders in a directory that hold an autopsy, the latest last."""
    found = [path for path in folder.glob(f"*/{AUTOPSY}") if is_own_folder(path.parent)]
    return [path.parent for path in sorted(found, key=lambda path: path.lstat().st_mtime)]


def of_watch(folder: Path) -> Answer | None:
    """The answer about a folder in which a watch kept snapshots of finite steps; None if it has none."""
    kept = kept_in(folder)
    if not kept:
        return None
    summary = f"Nothing went wrong: the watch recorded no failure, and its last snapshot is of step {kept[-1].name}."
    unchecked = ["what happens in later steps"]
    return Answer("watch", str(folder), HEALTHY, summary, summary, unchecked=unchecked, environment=versions_here())


def trainer_state(folder: Path) -> dict[str, Any] | None:
    """The latest state of a Trainer in its output directory, or in one of its checkpoints; None if there is none."""
    checkpoints = [path for path in folder.glob(f"checkpoint-*/{_STATE}") if is_own_folder(path.parent)]
    numbered = [path for path in checkpoints if re.fullmatch("checkpoint-[0-9]{1,12}", path.parent.name)]
    latest = sorted(numbered, key=lambda path: int(path.parent.name.partition("-")[2]))
    path = folder / _STATE if (folder / _STATE).is_file() else latest[-1] if latest else None
    if path is None:
        return None
    try:
        state = parse_json(read_bounded(path, FACTS_BYTES), constants=True)
        if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
            raise ValueError("it has no log_history")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): give another directory.") from error
    return state


def of_trainer(folder: Path, state: Mapping[str, Any]) -> Answer:
    """The answer about a Trainer that no watch followed: what its log shows."""
    rows = [row for row in state["log_history"] if isinstance(row, dict) and isinstance(row.get("step"), int)]
    bad = next(((row["step"], key) for row in rows for key in _NUMBERS if _is_nonfinite(row.get(key))), None)
    last = max((row["step"] for row in rows), default=0)
    hidden = "whether a loss was NaN: the Trainer hides that in its log unless logging_nan_inf_filter=False"
    nowhere = "which operation made it: no watch followed the run, add watch_trainer(trainer) and run it again"
    if bad is None:
        summary = f"The log of this Trainer shows no NaN and no infinity up to step {last}."
        return Answer(
            "trainer", str(folder), HEALTHY, summary, summary, unchecked=[hidden], environment=versions_here()
        )
    summary = f"The log of this Trainer shows a non-finite {_NUMBERS[bad[1]]} at step {bad[0]}, and not before."
    return Answer(
        "trainer", str(folder), FAILED, summary, summary, unchecked=[nowhere, hidden], environment=versions_here()
    )


_NUMBERS = {"loss": "loss", "grad_norm": "gradient norm", "eval_loss": "evaluation loss"}
"""Columns of a Trainer's log that tell a failure -> how a person calls them."""


def _is_nonfinite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def versions_here() -> dict[str, Any]:
    """Versions on this machine, where an autopsy does not record those of its run."""
    versions: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
