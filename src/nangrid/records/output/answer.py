"""Defines the answer of `why`, which other commands print as a part of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nangrid.records.explain.certainty import Certainty, Grade

SCHEMA = 2
FAILED, HEALTHY, CRASHED, UNFINISHED = "failed", "healthy", "crashed", "unfinished"


@dataclass(frozen=True)
class Statement:
    """One sentence, and the runs that prove it."""

    text: str
    cells: list[str]
    """The cell_id of each of these runs."""


@dataclass(frozen=True)
class CauseCard:
    """Levels that bring an event about when they are set in the reference."""

    levels: list[str]
    """Empty if the reference itself fails this way."""
    grade: Grade
    text: str
    """What the runs showed."""
    cells: list[str]
    """The runs that prove it."""


@dataclass(frozen=True)
class CureCard:
    """A change of levels, and what it made of the failing runs."""

    levels: list[str]
    grade: Grade
    partial: bool
    """Whether some of the runs that tried it still fail."""
    text: str
    """What the runs showed."""
    cells: list[str]
    """The runs that stayed finite."""
    code: list[str] = field(default_factory=list)
    """What to type in a script that uses transformers and PEFT; empty where no single statement does it."""


@dataclass(frozen=True)
class FutileCard:
    """A factor that makes no difference to an event."""

    factor: str
    levels: list[str]
    """The levels that were tried."""
    text: str
    """What the runs showed."""
    cells: list[str]
    """Runs that differ in this factor alone and fail alike."""


@dataclass(frozen=True)
class EventCard:
    """One event of a grid: a way in which its runs fail."""

    event: str
    """Mechanism, phase and kind."""
    mechanism: str
    title: str
    """The mechanism in words."""
    happened: Statement
    """In how many runs, and when; the runs that failed."""
    causes: list[CauseCard]
    certainty: Certainty
    """How sure the first cause is."""
    cures: list[CureCard]
    """The one to try first comes first."""
    no_help: list[FutileCard]
    undecided: list[str]

    @property
    def first_cures(self) -> list[CureCard]:
        """At most three cures to show: none larger, and none less complete, than the one to try first."""
        as_good = (
            cure
            for cure in self.cures
            if len(cure.levels) <= len(self.cures[0].levels) and cure.partial <= self.cures[0].partial
        )
        return list(as_good)[:3]


@dataclass(frozen=True)
class Finding:
    """What the replay of one failing step found: from an autopsy."""

    autopsy: str
    """The path of its `autopsy.json`."""
    happened: str
    where: str
    """Source line, module and phase of the origin."""
    operation: str
    """The operation at the origin, with its numbers."""
    tokens: str
    """The tokens at the origin, without their text unless it was requested; empty if there are none."""
    mechanism: str
    title: str
    """The mechanism in words."""
    why: str
    origin: Certainty
    """How sure the origin is."""
    reason: Certainty
    """How sure the mechanism is."""
    change: list[str]
    """What to change, the first to try comes first."""
    overrides: list[str]
    """Those of the changes that can be typed as levels of a run."""
    ruled_out: list[str]
    unchecked: list[str]
    """Checks that could not be made."""
    operand_script: str | None = None
    """The path of a script of torch alone that makes the operation fail; null if there is none."""


@dataclass(frozen=True)
class Answer:
    """The answer of `why` about a directory."""

    about: str
    """autopsy, cell, grid, diagnosis, trainer, or watch: a folder with snapshots alone."""
    path: str
    outcome: str
    """failed, healthy, crashed or unfinished."""
    headline: str
    """What happened, in one sentence."""
    summary: str
    """The answer in one paragraph of plain English."""
    events: list[EventCard] = field(default_factory=list)
    """Of a grid all events, the most frequent first; of a cell in a grid its own."""
    findings: list[Finding] = field(default_factory=list)
    """Of a cell or an autopsy one; of a grid one per event that has an autopsy."""
    diagnosis: list[str] = field(default_factory=list)
    """The result of the latest diagnosis as it was printed."""
    unchecked: list[str] = field(default_factory=list)
    """What these records cannot show."""
    next: str = ""
    """The command to type next; empty if there is none."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Machine and versions of the run, where the record has them."""
    schema: int = SCHEMA


def together(levels: Sequence[str]) -> str:
    """`dtype=fp16`, or `dtype=silent_fp16 with init=zero and optim=sgd` for levels that act together."""
    if not levels:
        return "the reference itself"
    first, *others = levels
    return f"{first} with {' and '.join(others)}" if others else first


def shows(finding: Finding, card: EventCard) -> str:
    """The run that the finding is about, if it is one that fails by this event; else empty."""
    return next((cell for cell in card.happened.cells if cell in Path(finding.autopsy).parts), "")


def change_first(answer: Answer) -> list[tuple[str, str]]:
    """What to change and how a script does it, the first to try comes first.

    What other runs have proven comes before what the replay advises, of which no code is known.
    """
    cures = [cure for card in answer.events for cure in card.cures]
    known = {cure.levels[0] for cure in cures if len(cure.levels) == 1}
    advice = [text for finding in answer.findings for text in finding.change if text not in known]
    proven = [(f"{together(cure.levels)}: {cure.text}", "; ".join(cure.code)) for cure in cures]
    return [*proven, *((text, "") for text in advice)]
