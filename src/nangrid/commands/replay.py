"""`replay`: run a cell's failing step again from its snapshot, as it was or under other levels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nangrid.commands.compose import composed, key_of
from nangrid.commands.exits import exit_code
from nangrid.commands.parser import make_parser
from nangrid.grid.plan import as_config
from nangrid.grid.request import Request, read_request
from nangrid.grid.worker import ENVIRONMENT
from nangrid.records.autopsy import Autopsy, read_autopsy
from nangrid.records.cell import REQUEST, CellRecord
from nangrid.records.errors import InputError
from nangrid.records.explain import explain
from nangrid.records.grid import read_verified
from nangrid.records.start_from import SNAPSHOT, find_start

if TYPE_CHECKING:
    from nangrid.cell.config import Config
    from nangrid.cell.replay import Counterfactual
    from nangrid.watch.state.snapshot import Snapshot

EPILOG = """\
python -m src.replay outputs/default/cells/30e24def...                 the same autopsy again
python -m src.replay outputs/default/cells/30e24def... dtype=bf16      would the same step have survived?
python -m src.replay outputs/late/cells/403f6431.../kept/16 dtype=fp16 would this finite step have failed?
"""
TOO_LARGE = 1e6
"""A gradient norm that ends no run and yet says that something is wrong: mean rows stay below 100."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 the step was replayed, whatever it did; 2 for what cannot be replayed or asked."""
    parser = make_parser("replay", "Run a cell's failing step again, with its own or other levels.", EPILOG)
    parser.add_argument(
        "cell",
        metavar="CELL_DIR",
        type=Path,
        help="the directory of a cell that went non-finite, or of a snapshot that one kept (CELL_DIR/kept/100)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="levels to replay it under")
    asked = parser.parse_args(arguments)
    os.environ.update(ENVIRONMENT)  # as in the cell's own process, before torch is imported
    return exit_code(lambda: _replay(*_snapshot_of(asked.cell), asked.overrides))


def _replay(cell: Path, folder: Path, overrides: list[str]) -> None:
    request = read_request(cell)
    if request is None:
        raise InputError(f"{cell} holds no request.json: it was made by an older nangrid, run the cell again.")
    old = request.plan(cell).cell_config
    config = _with(old, request, overrides) if overrides else old
    from nangrid.cell.replay import check_question, replay_cell, replay_under
    from nangrid.watch.state.snapshot import Snapshot

    snapshot = Snapshot.load(folder)
    if not snapshot.clock and not overrides:
        raise InputError(f"{folder} is a step that was finite: give levels to replay it under, such as dtype=fp16.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cell's log has them
        if not overrides:
            _tell_again(replay_cell(config, snapshot), read_autopsy(folder))
            return
        check_question(config, old, snapshot)
        _tell_under(replay_under(config, old, snapshot), snapshot, request, overrides)


def _snapshot_of(path: Path) -> tuple[Path, Path]:
    """The cell's directory and that of the snapshot meant: the failing step's, or the one given."""
    cell = _cell(path)
    if cell.is_dir() and (cell / REQUEST).is_file():
        return cell, (cell / str(_failed_record(cell).snapshot)).parent
    try:
        start = find_start(str(path))
    except InputError as error:
        raise InputError(f"{path} is not the directory of a finished cell: give OUT/cells/CELL_ID.") from error
    if start.kind != SNAPSHOT:
        raise InputError(
            f"{path} is a checkpoint, which holds no batch: src.run start_from={path} horizon=1 takes its next step."
        )
    if start.cell is None:
        raise InputError(
            f"{path} is of a script of your own, which alone can build its model: nangrid.diagnose takes start_from=."
        )
    return start.cell, start.folder


def _cell(path: Path) -> Path:
    """The directory; the first digits of a cell_id, as tables show them, will do."""
    begins_so = [] if path.exists() else list(path.parent.glob(f"{path.name}*"))
    return begins_so[0] if len(begins_so) == 1 else path


def _failed_record(cell: Path) -> CellRecord:
    record = read_verified(cell.absolute()) if cell.is_dir() else None
    if record is None:
        raise InputError(f"{cell} is not the directory of a finished cell: give OUT/cells/CELL_ID.")
    if record.snapshot is None:
        ending = f"it is {record.status} after {record.steps_done} steps"
        raise InputError(f"{cell} has no failing step to replay: {ending}.")
    return record


def _with(old: Config, request: Request, overrides: list[str]) -> Config:
    """The cell's config with the groups replaced that the overrides name; the rest stays as it was recorded."""
    found = composed(override_with(request.overrides, overrides))
    groups = {key_of(override).split(".")[0] for override in overrides}
    return replace(as_config(asdict(old) | {group: found[group] for group in groups}), out=old.out)


def override_with(before: list[str], overrides: list[str]) -> list[str]:
    """The overrides, in the place of those before that they make void: of the same key, or of a field of it."""
    named = {key_of(override) for override in overrides}
    kept = [o for o in before if not any(f"{key_of(o)}.".startswith(f"{key}.") for key in named)]
    return [*kept, *overrides]


def _tell_again(autopsy: Autopsy, recorded: Autopsy | None) -> None:
    print(f"step {autopsy.step}, clock {autopsy.clock}, replayed from its snapshot")
    print(explain(autopsy))
    if recorded is None:
        print("no autopsy was recorded")
        return
    differing = [key for key, value in vars(autopsy).items() if value != getattr(recorded, key)]
    print(
        f"differs from the recorded autopsy in: {', '.join(differing)}" if differing else "as in the recorded autopsy"
    )


def _tell_under(told: Counterfactual, snapshot: Snapshot, request: Request, overrides: list[str]) -> None:
    levels, found = " ".join(overrides), told.replay
    was = snapshot.clock or "finite"
    print(f"step {snapshot.step} of {request.title} ({was}), the same batch and trainables under {levels}:")
    if told.autopsy is None:
        print(f"  survives: loss {found.loss:.4g}, gradient norm {found.norm:.3g}")
        if found.norm > TOO_LARGE:
            print("  but look at that norm: clipping divides every update by it, so next to nothing is learned")
    elif found.clock == "frozen":
        print("  is frozen: the gradients are finite, their norm is inf, and clipping makes every update zero")
    else:
        print(f"  fails{' too' * bool(snapshot.clock)} ({found.clock})")
        print(explain(replace(told.autopsy, reproduced=True)))
    if any(key_of(o).split(".")[0] == "init" for o in overrides) and snapshot.step > 0:
        print("  (the trainables were trained with the rows that the cell had)")
    print(f"One step is not a cure: python -m src.run {' '.join(override_with(request.overrides, overrides))}")
