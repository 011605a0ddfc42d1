"""`replay`: runs a cell's failing step again from its snapshot, unchanged or under other levels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nangrid.cell.config import Config, factors
from nangrid.cell.levels import as_config
from nangrid.commands.compose import composed, key_of, level_overrides
from nangrid.commands.exits import exit_code
from nangrid.commands.parser import command_line, make_parser
from nangrid.grid.plan import requested_plan
from nangrid.grid.request import read_request
from nangrid.grid.worker import ENVIRONMENT
from nangrid.records.autopsy import Autopsy, read_autopsy
from nangrid.records.cell import REQUEST, CellRecord
from nangrid.records.errors import InputError
from nangrid.records.explain import explain, format_number
from nangrid.records.grid import read_verified
from nangrid.records.safety.text import say
from nangrid.records.start_from import SNAPSHOT, find_start, snapshot_of

if TYPE_CHECKING:
    from nangrid.cell.replay import Counterfactual
    from nangrid.watch.state.snapshot import Snapshot

EPILOG = """\
Reproduce the recorded autopsy:
  python -m src.replay outputs/default/cells/2769c279...
Would the failing step have survived in bf16?
  python -m src.replay outputs/default/cells/2769c279... dtype=bf16
Would this finite step have failed in fp16?
  python -m src.replay outputs/late/cells/403f6431.../kept/16 dtype=fp16
"""
SUSPICIOUS_NORM = 1e6
"""A gradient norm that fails no run but shows that something is wrong: with rows of init=mean it stays below 100."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay a step and return the exit code: 0 whatever the step did, 2 if it cannot be replayed that way."""
    description = "Run a cell's failing step again from its snapshot, unchanged or under other levels."
    parser = make_parser("replay", description, EPILOG)
    parser.add_argument(
        "cell",
        metavar="CELL_DIR",
        type=Path,
        help="directory of a cell that went non-finite, or of a snapshot that a cell kept (CELL_DIR/kept/100)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="levels to replay the step under")
    options = parser.parse_args(arguments)
    # The same environment as in the cell's own process, before torch is imported: else the bits may differ.
    os.environ.update(ENVIRONMENT)
    return exit_code(lambda: _replay(*_find_snapshot(options.cell), options.overrides))


def _replay(cell: Path, folder: Path, overrides: list[str]) -> None:
    request = read_request(cell)
    if request is None:
        raise InputError(f"{cell} has no {REQUEST}, because an older nangrid made it: run the cell again.")
    recorded = requested_plan(request, cell).cell_config
    if recorded.python is not None:
        raise InputError(f"{cell} ran in python={recorded.python}, and a replay here would run with other packages.")
    if recorded.processes > 1:
        raise InputError(
            f"{cell} trained on {recorded.processes} processes, and a replay here would run on one: its ranks have "
            f"replayed the step, and {command_line('why', str(cell))} says what they found."
        )
    config = _with_levels(recorded, overrides) if overrides else recorded
    from nangrid.cell.replay import check_comparable, replay_cell, replay_under
    from nangrid.watch.state.snapshot import Snapshot

    snapshot = Snapshot.load(folder)
    if not snapshot.clock and not overrides:
        raise InputError(f"{folder} is a step that was finite: give levels to replay it under, such as dtype=fp16.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cell's log has them already
        if not overrides:
            _print_autopsy(replay_cell(config, snapshot), read_autopsy(folder))
            return
        check_comparable(config, recorded, snapshot)
        _print_counterfactual(replay_under(config, recorded, snapshot), snapshot, request.title, overrides)
        say(f"  {_verifying(recorded, overrides)}")


def _find_snapshot(path: Path) -> tuple[Path, Path]:
    """The cell's directory, and that of the snapshot at `path`: of a cell, the one of its failing step."""
    cell = _complete(path)
    if cell.is_dir() and os.path.lexists(cell / REQUEST):
        return cell, snapshot_of(cell, _failed_record(cell)).parent
    try:
        start = find_start(str(path))
    except InputError as error:
        raise _no_cell(path) from error
    if start.kind != SNAPSHOT:
        raise InputError(
            f"{path} is a checkpoint, which holds no batch: to take its next step, type "
            f"{command_line('run', f'start_from={path}', 'horizon=1')}."
        )
    if start.cell is None:
        raise InputError(
            f"{path} is a snapshot of your own script, and only the script can build its model: "
            f"call nangrid.diagnose(..., start_from={str(path)!r})."
        )
    return start.cell, start.folder


def _complete(path: Path) -> Path:
    """`path`, or the one directory whose name begins with it: tables show the first digits of a cell_id."""
    candidates = [] if path.exists() else list(path.parent.glob(f"{path.name}*"))
    return candidates[0] if len(candidates) == 1 else path


def _failed_record(cell: Path) -> CellRecord:
    record = read_verified(cell.absolute()) if cell.is_dir() else None
    if record is None:
        raise _no_cell(cell)
    if record.snapshot is None:
        raise InputError(
            f"{cell} has no failing step to replay: it is {record.status} after {record.steps_done} steps."
        )
    return record


def _no_cell(path: Path) -> InputError:
    return InputError(f"{path} is not the directory of a finished cell: give OUT/cells/CELL_ID.")


def _with_levels(recorded: Config, overrides: list[str]) -> Config:
    """The recorded config, its groups replaced where an override names one; the others stay as they were recorded."""
    changed = composed(override_with(level_overrides(factors(recorded)), overrides))
    groups = {key_of(override).split(".")[0] for override in overrides}
    return replace(as_config(asdict(recorded) | {group: changed[group] for group in groups}), out=recorded.out)


def override_with(before: list[str], overrides: list[str]) -> list[str]:
    """`before` and then `overrides`, without those of `before` that set the same key or a field of it."""
    keys = {key_of(override) for override in overrides}
    kept = [o for o in before if not any(f"{key_of(o)}.".startswith(f"{key}.") for key in keys)]
    return [*kept, *overrides]


def _print_autopsy(autopsy: Autopsy, recorded: Autopsy | None) -> None:
    say(f"step {autopsy.step}, clock {autopsy.clock}, replayed from its snapshot")
    say(explain(autopsy))
    if recorded is None:
        say("no autopsy was recorded")
        return
    differing = [key for key, value in vars(autopsy).items() if value != getattr(recorded, key)]
    if differing:
        say(f"differs from the recorded autopsy in: {', '.join(differing)}")
    else:
        say("identical to the recorded autopsy")


def _print_counterfactual(outcome: Counterfactual, snapshot: Snapshot, title: str, overrides: list[str]) -> None:
    step = outcome.replay
    before = snapshot.clock or "finite"
    say(f"step {snapshot.step} of {title} ({before}), replayed under {' '.join(overrides)}")
    say("with the same batch and the same trained weights:")
    if outcome.autopsy is None:
        say(f"  survives: loss {format_number(step.loss)}, gradient norm {format_number(step.norm)}")
        if step.norm > SUSPICIOUS_NORM:
            say("  but clipping divides every update by that norm, so almost nothing is learned")
    elif step.clock == "frozen":
        say("  is frozen: the gradients are finite but their norm is inf, so clipping makes every update zero")
    else:
        say(f"  fails{' too' * bool(snapshot.clock)} ({step.clock})")
        say(explain(replace(outcome.autopsy, reproduced=True)))
    if snapshot.step > 0 and any(key_of(override).split(".")[0] == "init" for override in overrides):
        say("  (the trained weights come from the original embedding rows)")
    say("One step proves nothing. To verify:")


def _verifying(recorded: Config, overrides: list[str]) -> str:
    """The command that trains the cell under these overrides. Its levels are checked; the recorded text is not."""
    tracker = f"tracker={recorded.tracker.name}"
    where = [f"horizon={recorded.horizon}", tracker, f"out={recorded.out}"]
    return command_line("run", *override_with([*level_overrides(factors(recorded)), *where], overrides))
