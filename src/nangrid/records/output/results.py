"""Defines what `run`, `report`, `diagnose`, `check` and `status` print with `--json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nangrid.records.cell import CellRecord
from nangrid.records.diagnosis import ClaimRecord
from nangrid.records.output.answer import Answer

SCHEMA = 2


@dataclass(frozen=True)
class CellResult:
    """One finished cell."""

    cell_id: str
    path: str
    """Its directory."""
    overrides: list[str]
    """The levels as they were typed."""
    status: str
    """finite, nonfinite, error or timeout."""
    steps_done: int
    onset_step: int | None
    onset_clock: str | None
    trained: bool
    """Finite, not frozen, and every trainable parameter received a gradient."""
    loss_last: float | None
    error: str | None

    @classmethod
    def of(cls, record: CellRecord, path: str) -> CellResult:
        """The result that a record holds."""
        onset, error = record.onset, record.error
        return cls(
            cell_id=record.cell_id,
            path=path,
            overrides=record.overrides,
            status=record.status,
            steps_done=record.steps_done,
            onset_step=onset.step if onset else None,
            onset_clock=onset.clock if onset else None,
            trained=record.trained,
            loss_last=record.trains.loss_last,
            error=f"{error.type}: {error.message}" if error else None,
        )


@dataclass(frozen=True)
class RunResult:
    """Printed by `run`."""

    grid: str
    """The directory of the grid."""
    cells: list[CellResult]
    """Those that were requested; cells that are unfinished are missing."""
    answer: Answer | None
    """As `why` answers about the grid; null if no cell has finished."""
    schema: int = SCHEMA


@dataclass(frozen=True)
class ReportResult:
    """Printed by `report`."""

    grid: str
    page: str
    """The path of the page."""
    notebook: str | None
    """The path of the executed notebook; null if it was skipped or failed."""
    answer: Answer
    """As `why` answers about the grid."""
    verdict: list[str]
    """The lines of the verdict."""
    limits: list[str]
    """What the records and the design cannot show."""
    cells: list[CellResult]
    schema: int = SCHEMA


@dataclass(frozen=True)
class DiagnoseResult:
    """Printed by `diagnose`."""

    grid: str
    """The directory in which the runs are kept."""
    failing: str
    """The cell_id of the failing run."""
    reference: str
    """The cell_id of the run that trains."""
    lines: list[str]
    """The result as it is printed without `--json`."""
    claims: list[ClaimRecord]
    answer: Answer
    """As `why` answers about the diagnosis."""
    schema: int = SCHEMA


@dataclass(frozen=True)
class CheckFinding:
    """One thing that is wrong, or worth knowing, before training."""

    check: str
    severity: str
    """error, warning or note."""
    evidence: str
    fix: str


@dataclass(frozen=True)
class CheckResult:
    """Printed by `check`."""

    findings: list[CheckFinding]
    warnings: list[str]
    """Where the model is not as requested."""
    ledger: dict[str, Any]
    """The dtypes and the arithmetic really in use."""
    schema: int = SCHEMA


@dataclass(frozen=True)
class CellProgress:
    """The present state of one cell."""

    cell_id: str
    title: str
    state: str
    """finite, nonfinite, error, timeout, running, waiting, unfinished or damaged."""
    steps_done: int
    horizon: int
    loss: float | None
    updated: float | None
    """Last report of a running cell, in seconds since the epoch."""


@dataclass(frozen=True)
class StatusResult:
    """Printed by `status`."""

    grid: str
    counts: dict[str, int]
    """Number of cells per state."""
    cells: list[CellProgress]
    seconds_left: float | None
    """Until all cells reach their horizon; null if nothing runs, or if it is not known."""
    skipped: list[str]
    """Why records cannot be read."""
    schema: int = SCHEMA
