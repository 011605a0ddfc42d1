"""What is kept of a cell that crashed, died or overran its time?"""

from __future__ import annotations

from pathlib import Path

from nangrid.cell.identity import cell_factors
from nangrid.grid.plan import CellPlan
from nangrid.grid.progress import read_progress
from nangrid.records.cell import CLOCKS, RESULT, CellError, CellRecord, Seconds, Trains

LOG = "log.txt"
TAIL_LINES = 40


def failed_record(
    plan: CellPlan, grid_id: str, status: str, type_name: str, message: str, seconds: float
) -> CellRecord:
    """A record of status error or timeout: nothing was learned but how far it came and what it last said."""
    progress = read_progress(plan.directory())
    return CellRecord(
        cell_id=plan.cell_id,
        grid_id=grid_id,
        overrides=plan.overrides,
        factors=cell_factors(plan.config),
        status=status,
        horizon=plan.config.horizon,
        steps_done=progress.steps_done if progress else 0,
        censored=False,
        onset=None,
        clocks=dict.fromkeys(CLOCKS),
        trains=Trains(None, [], None, None, None),
        ledger={},
        environment={},
        autopsy=None,
        snapshot=None,
        seconds=Seconds(setup=seconds, train=0.0, replay=0.0),
        peak_rss_bytes=0,
        error=CellError(type_name, message, log_tail(plan.directory())),
    )


def log_tail(cell: Path) -> str:
    """The last lines of the cell's log."""
    try:
        return "\n".join((cell / LOG).read_text(errors="replace").splitlines()[-TAIL_LINES:])
    except FileNotFoundError:
        return ""


def set_aside(cell: Path) -> None:
    """Keep a superseded record under a name of its own; the cell is unfinished from here on."""
    if (cell / RESULT).exists():
        taken = len(list(cell.glob("result.*.json")))
        (cell / RESULT).rename(cell / f"result.{taken}.json")
