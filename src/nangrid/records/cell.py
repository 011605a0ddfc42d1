"""Defines `result.json`, the record of one cell; it is written last, so a cell without it is unfinished."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nangrid.records.atomic import write_bytes
from nangrid.records.codec import encode
from nangrid.records.reader import read_json
from nangrid.records.safety.names import is_level, is_name

SCHEMA = 1
RESULT = "result.json"
LOG = "log.txt"
REQUEST = "request.json"
"""Written into a cell's directory before the cell starts: its configuration."""

CLOCKS = ("loss", "gradient", "parameter", "optimizer_state", "eval_loss")
"""Where a non-finite value can first appear, in their order within a step."""

STATUSES = ("finite", "nonfinite", "error", "timeout")
STATUS_TITLES = {"nonfinite": "non-finite"}
"""A status as a person reads it, where that differs."""

START_FROM, START_STEP = "start_from", "start_from.step"
"""Factors of a cell that resumes another run: the hash of the state on disk, and its first step there."""

MOST_STEPS = 2**40
"""More steps than any run takes; sums of as many still fit into 64 bits."""
_MOST_LAYERS = 10_000
_LINES = ("warnings", "preflight", "early_warnings")
"""Entries of the ledger that are lists of sentences."""


@dataclass(frozen=True)
class Onset:
    """The earliest (step, clock) with a non-finite value."""

    step: int
    clock: str


@dataclass(frozen=True)
class Trains:
    """Whether the cell learned anything, regardless of non-finite values."""

    frozen_from: int | None
    """First step from which every update is zero because the gradient norm is inf."""
    without_gradient: list[str]
    """Trainable parameters that never received a gradient."""
    max_update: float | None
    loss_first: float | None
    loss_last: float | None


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds by phase."""

    setup: float
    train: float
    replay: float


@dataclass(frozen=True)
class CellError:
    """Why a cell ended with status error or timeout."""

    type: str
    message: str
    log_tail: str


@dataclass(frozen=True)
class CellRecord:
    """One cell's `result.json`.

    Non-finite floats survive the round trip in fields declared as float. In `factors`, `ledger` and `environment`,
    whose values have no declared type, they are read back as the strings "nan", "inf" and "-inf".
    """

    cell_id: str
    grid_id: str
    overrides: list[str]
    factors: dict[str, Any]
    status: str
    horizon: int
    steps_done: int
    censored: bool
    onset: Onset | None
    clocks: dict[str, int | None]
    """Clock -> the first step at which it tripped, or None."""
    trains: Trains
    ledger: dict[str, Any]
    environment: dict[str, Any]
    autopsy: str | None
    """Path relative to the cell's directory."""
    snapshot: str | None
    """Path relative to the cell's directory."""
    seconds: Seconds
    peak_rss_bytes: int
    error: CellError | None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Check that the fields are consistent with each other."""
        if self.status not in STATUSES:
            raise ValueError(f"status is {self.status!r}, not one of {', '.join(STATUSES)}")
        if set(self.clocks) != set(CLOCKS):
            raise ValueError(f"clocks are {', '.join(self.clocks)}, not {', '.join(CLOCKS)}")
        if self.onset != earliest_onset(self.clocks):
            raise ValueError(f"onset is {self.onset}, but the clocks say {earliest_onset(self.clocks)}")
        if self.status in ("finite", "nonfinite") and (self.onset is None) != (self.status == "finite"):
            raise ValueError(f"status is {self.status}, but onset is {self.onset}")
        self._check_levels()
        self._check_numbers()

    def _check_levels(self) -> None:
        if not is_name(self.cell_id):
            raise ValueError(f"cell_id is {self.cell_id!r:.60}, which is no name of a cell")
        if unfit := [key for key, level in self.factors.items() if not is_level(level)]:
            raise ValueError(f"factors.{unfit[0]:.60} is no level")
        for key, kind in (("seed", int), (START_STEP, int), ("model", str), ("script", str)):
            if type(self.factors.get(key, kind())) is not kind:
                raise ValueError(f"factors.{key} is {self.factors[key]!r:.60}, not {kind.__name__}")
        for key in _LINES:
            lines = self.ledger.get(key, [])
            if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
                raise ValueError(f"ledger.{key} is no list of texts")

    def _check_numbers(self) -> None:
        steps = {"horizon": self.horizon, "steps_done": self.steps_done, **self.clocks}
        steps |= {"trains.frozen_from": self.trains.frozen_from, START_STEP: self.factors.get(START_STEP)}
        for name, step in steps.items():
            if step is not None and not 0 <= step <= MOST_STEPS:
                raise ValueError(f"{name} is {step}, not a number of steps")
        layers = self.ledger.get("layers", 0)
        if type(layers) is not int or not 0 <= layers <= _MOST_LAYERS:
            raise ValueError(f"ledger.layers is {layers!r:.60}, not a number of layers")
        for name, seconds in vars(self.seconds).items():
            if not 0 <= seconds < math.inf:
                raise ValueError(f"seconds.{name} is {seconds}, not a duration")

    @property
    def first_step(self) -> int:
        """0, or the step at which the cell resumed another run (start_from)."""
        return int(self.factors.get(START_STEP, 0))

    @property
    def steps_survived(self) -> int:
        """Optimizer steps that the cell took before its onset, or all its steps if it stayed finite."""
        return self.steps_done if self.onset is None else self.onset.step - self.first_step

    @property
    def trained(self) -> bool:
        """Whether the cell is finite, not frozen, and every trainable parameter received a gradient."""
        learns = self.trains.frozen_from is None and not self.trains.without_gradient
        return self.status == "finite" and learns


def earliest_onset(clocks: dict[str, int | None]) -> Onset | None:
    """The first (step, clock) that tripped, or None; within a step the order is that of CLOCKS."""
    tripped = [(step, CLOCKS.index(clock)) for clock, step in clocks.items() if step is not None]
    if not tripped:
        return None
    step, clock = min(tripped)
    return Onset(step, CLOCKS[clock])


def write_record(directory: Path, record: CellRecord) -> None:
    """Write `result.json` atomically; the cell counts as finished from then on."""
    text = json.dumps(encode(record), indent=1, allow_nan=False)
    write_bytes(directory / RESULT, text.encode() + b"\n")


def read_record(directory: Path) -> CellRecord | None:
    """The record in a cell's directory; None if the cell is unfinished, RecordError if it cannot be read."""
    return read_json(directory / RESULT, CellRecord, SCHEMA)
