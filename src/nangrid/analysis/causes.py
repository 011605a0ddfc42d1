"""Which levels brought an event about, and which changes of level cure it? From the cells of a finished grid.

Relative to a reference combination that trains (DESIGN 1): a *cause* of an event is a minimal set of levels which,
put into the reference, is enough to bring it about; a *cure* of a failing cell a minimal set of changes after which
it trains. A cell that met another event first says nothing of this one: the other event is a competing risk.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from statistics import median

from nangrid.analysis.onsets import level_name, varying_factors
from nangrid.records.autopsy import Autopsy
from nangrid.records.cell import CellRecord

Levels = tuple[tuple[str, str], ...]
"""(factor, level) pairs, in the grid's order of factors."""

WORSE = 1.05
"""A final loss this many times the reference's counts as no worse: batches differ in what they hold."""
ENOUGH_STEPS = 4
"""A cure is finite to this many times the failing onset."""

FROZEN = "infinite-norm-freeze"
UNTRAINED = "no-gradient"


@dataclass(frozen=True, order=True)
class Event:
    """What happened to a cell: the phase, the IEEE kind and the mechanism of its origin."""

    mechanism: str
    phase: str
    kind: str

    def __str__(self) -> str:
        """In plain words."""
        return f"{self.mechanism} ({self.phase} {self.kind})" if self.phase else self.mechanism


@dataclass(frozen=True)
class Combination:
    """The cells of one combination of levels, one a seed."""

    levels: Levels
    records: tuple[CellRecord, ...]
    events: tuple[Event | None, ...]
    """One a record; None: nothing happened to it."""
    loss: float
    """The median over seeds, after as many steps for every combination; infinite if one did not get there."""

    @cached_property
    def usable(self) -> bool:
        """Whether any cell ran to an end that says something: crashes and timeouts do not."""
        return any(record.error is None for record in self.records)

    def shows(self, event: Event) -> bool:
        """Whether any seed met the event."""
        return event in self.events

    def avoids(self, event: Event) -> bool:
        """Whether no seed met the event, and one could have: it met no other one."""
        return not self.shows(event) and any(
            e is None for e, r in zip(self.events, self.records, strict=True) if r.error is None
        )

    @cached_property
    def trains(self) -> bool:
        """Whether every seed trained."""
        return self.usable and all(r.trained for r in self.records if r.error is None)


@dataclass(frozen=True)
class Cause:
    """Levels that, put into the reference, are enough for an event; and the cells that prove it."""

    levels: Levels
    proof: Combination
    without: tuple[Combination, ...]
    """The cells with all but one of the levels, where the event did not come about."""
    open: tuple[Levels, ...]
    """Smaller sets that the grid does not decide: it lacks the cell, or another event came first."""


@dataclass(frozen=True)
class Cure:
    """Changes of level after which a failing combination trains; and the cells that prove it."""

    changes: Levels
    proof: Combination
    until: int
    """Steps for which it was seen to be finite."""
    enough: bool
    """Whether that is ENOUGH_STEPS times the failing onset."""


@dataclass(frozen=True)
class Futile:
    """One change of level that was tried on failing combinations and after which none trains."""

    change: tuple[str, str]
    proofs: tuple[Combination, ...]


@dataclass(frozen=True)
class Finding:
    """One event of the grid."""

    event: Event
    failing: tuple[Combination, ...]
    causes: tuple[Cause, ...]
    necessary: Levels
    """Levels that are in every cause."""
    cures: Mapping[Levels, tuple[Cure, ...]] = field(default_factory=dict)
    """By the levels of the failing combination."""
    futile: tuple[Futile, ...] = ()
    """Single changes that cure none of the failing combinations on which the grid tried them."""


class Grid:
    """The combinations of a grid, by their levels."""

    def __init__(
        self,
        records: Sequence[CellRecord],
        autopsies: Mapping[str, Autopsy],
        losses: Mapping[str, float] | None = None,
    ) -> None:
        """`losses` are by cell_id, after as many steps for every cell; left out, the last losses serve."""
        table = varying_factors([record.factors for record in records])
        self.factors = [str(column) for column in table.columns if column != "seed"]
        grouped: dict[Levels, list[CellRecord]] = {}
        for record, row in zip(records, table[self.factors].map(level_name).to_dict("records"), strict=True):
            grouped.setdefault(tuple((factor, row[factor]) for factor in self.factors), []).append(record)
        self.combinations = {
            levels: Combination(
                levels, tuple(rows), tuple(event_of(r, autopsies.get(r.cell_id)) for r in rows), _median(rows, losses)
            )
            for levels, rows in grouped.items()
        }

    def events(self) -> list[Event]:
        """Every event that some cell met, ordered by how many did."""
        met = [event for combination in self.combinations.values() for event in combination.events if event]
        return sorted(set(met), key=lambda event: (-met.count(event), event))

    @cached_property
    def reference(self) -> Combination | None:
        """Of those that train to no worse than the lowest loss, the one whose neighbours train most; None if none does.

        Losses that close differ between processors; a neighbour differs in one factor.
        """
        training = [combination for combination in self.combinations.values() if combination.trains]
        lowest = min((combination.loss for combination in training), default=0.0)
        good = [combination for combination in training if no_worse(combination.loss, lowest)]
        return max(good, key=lambda c: (self._training_neighbours(c), -c.loss), default=None)

    def _training_neighbours(self, combination: Combination) -> int:
        others = [other.levels for other in self.combinations.values() if other.trains]
        return sum(sum(map(operator.ne, levels, combination.levels)) == 1 for levels in others)

    def findings(self, reference: Combination) -> list[Finding]:
        """Causes and cures of each event, relative to the reference."""
        return [self._finding(event, reference) for event in self.events()]

    def _finding(self, event: Event, reference: Combination) -> Finding:
        failing = tuple(c for c in self.combinations.values() if c.shows(event))
        causes = tuple(self._causes(event, failing, reference))
        shared = set.intersection(*(set(cause.levels) for cause in causes)) if causes else set()
        necessary = tuple(pair for pair in causes[0].levels if pair in shared) if causes else ()
        cures = {combination.levels: tuple(self._cures(combination, reference)) for combination in failing}
        return Finding(event, failing, causes, necessary, cures, tuple(self._futile(failing)))

    def _causes(self, event: Event, failing: Iterable[Combination], reference: Combination) -> Iterable[Cause]:
        """Sets of levels that differ from the reference's and bring the event about, minimal among those seen."""
        enough: list[tuple[Levels, Combination]] = []
        for combination in sorted(failing, key=lambda c: len(differing(c.levels, reference.levels))):
            levels = differing(combination.levels, reference.levels)
            if not any(set(known) <= set(levels) for known, _ in enough):
                enough.append((levels, combination))
        for levels, combination in enough:
            subsets = [subset for size in range(len(levels)) for subset in combinations(levels, size)]
            seen = {subset: self._with(reference, subset) for subset in subsets}
            undecided = tuple(s for s, c in seen.items() if c is None or not (c.avoids(event) or c.shows(event)))
            without = tuple(c for s, c in seen.items() if len(s) == len(levels) - 1 and c and c.avoids(event))
            yield Cause(levels, combination, without, undecided)

    def _cures(self, failing: Combination, reference: Combination) -> Iterable[Cure]:
        """Changes to combinations of the grid that train, minimal among those seen."""
        onset = max(r.onset.step for r in failing.records if r.onset) if any(r.onset for r in failing.records) else 0
        known: list[Levels] = []
        for combination in sorted(
            self.combinations.values(), key=lambda c: (len(differing(c.levels, failing.levels)), c.loss)
        ):
            changes = differing(combination.levels, failing.levels)
            trains = combination.trains and no_worse(combination.loss, reference.loss)
            if not changes or not trains or any(set(cure) <= set(changes) for cure in known):
                continue
            known.append(changes)
            until = min(record.steps_done for record in combination.records)
            yield Cure(changes, combination, until, until >= ENOUGH_STEPS * max(1, onset))

    def _futile(self, failing: Iterable[Combination]) -> Iterable[Futile]:
        tried: dict[tuple[str, str], list[Combination]] = {}
        for combination in failing:
            for other in self.combinations.values():
                changes = differing(other.levels, combination.levels)
                if len(changes) == 1 and other.usable:
                    tried.setdefault(changes[0], []).append(other)
        for change, others in sorted(tried.items()):
            if not any(other.trains for other in others):
                yield Futile(change, tuple(others))

    def _with(self, reference: Combination, levels: Levels) -> Combination | None:
        wanted = tuple((factor, dict(levels).get(factor, level)) for factor, level in reference.levels)
        return self.combinations.get(wanted)


def event_of(record: CellRecord, autopsy: Autopsy | None) -> Event | None:
    """What happened to a cell; an onset without an autopsy is known by its clock alone."""
    if record.error is not None:
        return None
    if record.onset is not None:
        if autopsy is None:
            return Event(f"unexplained {record.onset.clock}", "", "")
        return Event(autopsy.mechanism, autopsy.phase, autopsy.kind)
    if record.trains.frozen_from is not None:
        return Event(FROZEN, "backward", "overflow")
    return Event(UNTRAINED, "", "") if record.trains.without_gradient else None


def _median(records: Sequence[CellRecord], losses: Mapping[str, float] | None) -> float:
    found = [r.trains.loss_last if losses is None else losses.get(r.cell_id) for r in records]
    return median(math.inf if loss is None or math.isnan(loss) else loss for loss in found)


def no_worse(loss: float, reference: float) -> bool:
    """Whether a final loss is as good as the reference's, as far as one batch tells."""
    return loss <= WORSE * reference


def differing(levels: Levels, other: Levels) -> Levels:
    """The pairs of `levels` that `other` does not have."""
    return tuple(pair for pair in levels if pair not in other)


def in_words(levels: Levels) -> str:
    """As they are typed."""
    return " ".join(f"{factor}={level}" for factor, level in levels) or "nothing"
