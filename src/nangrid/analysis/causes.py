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
from typing import Any

from nangrid.analysis.onsets import level_name, varying_factors
from nangrid.records.autopsy import Autopsy
from nangrid.records.cell import CellRecord
from nangrid.records.mechanisms import INFINITE_NORM_FREEZE, UNKNOWN

Levels = tuple[tuple[str, str], ...]
"""(factor, level) pairs, in the grid's order of factors."""

WORSE = 1.05
"""A loss this many times the best one's counts as no worse: batches differ in what they hold."""
ENOUGH_STEPS = 4
"""A cure is finite to this many times the failing onset."""

LAST = 4
"""Steps whose losses are averaged: one batch is harder than another."""
_WHAT_IS_LEARNED = ("data", "vocab", "model", "quant")
"""Groups of factors with which the losses themselves change: other text, other weights to begin with."""

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

    @cached_property
    def by_seed(self) -> dict[Any, tuple[CellRecord, Event | None]]:
        """Those that ran to an end that says something: crashes and timeouts do not."""
        pairs = zip(self.records, self.events, strict=True)
        return {record.factors.get("seed"): (record, event) for record, event in pairs if record.error is None}

    @property
    def usable(self) -> bool:
        """Whether any cell says something."""
        return bool(self.by_seed)

    def met(self, event: Event) -> dict[Any, int]:
        """The seeds that met the event, and at which step."""
        return {seed: steps_before(record) for seed, (record, own) in self.by_seed.items() if own == event}

    def avoids(self, event: Event, proof: Combination) -> bool:
        """Whether it stays clear of the event where `proof` met it: with such a seed, and for longer.

        A seed that met another event says nothing of this one.
        """
        clear = [
            seed
            for seed, step in proof.met(event).items()
            if seed in self.by_seed and self.by_seed[seed][1] is None and self.by_seed[seed][0].steps_done > step
        ]
        return bool(clear) and not self.met(event)

    @cached_property
    def failed(self) -> set[Any]:
        """The seeds with which it does not train."""
        return {seed for seed, (record, _) in self.by_seed.items() if not record.trained}

    @cached_property
    def trains(self) -> bool:
        """Whether every seed trained."""
        return self.usable and all(record.trained for record, _ in self.by_seed.values())

    def trains_instead(self, failing: Combination) -> bool:
        """Whether it trains, with a seed among them with which `failing` does not."""
        return self.trains and bool(failing.failed & self.by_seed.keys())


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
class EventVerdict:
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
        losses: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """`losses` are by cell_id, one a step; left out, the last losses serve."""
        table = varying_factors([record.factors for record in records])
        self.factors = [str(column) for column in table.columns if column != "seed"]
        grouped: dict[Levels, list[CellRecord]] = {}
        for record, row in zip(records, table[self.factors].map(level_name).to_dict("records"), strict=True):
            grouped.setdefault(tuple((factor, row[factor]) for factor in self.factors), []).append(record)
        self.combinations = {
            levels: Combination(levels, tuple(rows), tuple(event_of(r, autopsies.get(r.cell_id)) for r in rows))
            for levels, rows in grouped.items()
        }
        series = losses or {r.cell_id: [_loss(r)] * r.steps_done for r in records}
        self.relative_loss = relative_losses(self.combinations.values(), series)

    def events(self) -> list[Event]:
        """Every event that some cell met, ordered by how many did."""
        met = [event for combination in self.combinations.values() for event in combination.events if event]
        return sorted(set(met), key=lambda event: (-met.count(event), event))

    @cached_property
    def reference(self) -> Combination | None:
        """Of those that train to no worse than the lowest loss, the one furthest from trouble; None if none does.

        Losses that close differ between processors. A neighbour differs in one factor: the fewest that fail, then the
        most that train, then the lowest loss, of those that have at least half as many neighbours as any.
        """
        good = [c for c in self.combinations.values() if c.trains and self._no_worse(c)]
        near = {c.levels: self._neighbours(c) for c in good}
        explored = max((len(others) for others in near.values()), default=0) / 2

        def trouble(c: Combination) -> tuple[int, int, float]:
            failing, training = (sum(pair[i] for pair in near[c.levels]) for i in (0, 1))
            return failing, -training, self.relative_loss[c.levels]

        return min((c for c in good if len(near[c.levels]) >= explored), key=trouble, default=None)

    def _no_worse(self, combination: Combination) -> bool:
        return self.relative_loss.get(combination.levels, math.inf) <= WORSE

    def _neighbours(self, combination: Combination) -> list[tuple[bool, bool]]:
        """Of each whether it fails with a seed, and whether it trains."""
        near = (c for c in self.combinations.values() if sum(map(operator.ne, c.levels, combination.levels)) == 1)
        return [(bool(c.failed), c.trains) for c in near]

    def findings(self, reference: Combination) -> list[EventVerdict]:
        """Causes and cures of each event, relative to the reference."""
        return [self._finding(event, reference) for event in self.events()]

    def _finding(self, event: Event, reference: Combination) -> EventVerdict:
        failing = tuple(c for c in self.combinations.values() if c.met(event))
        causes = tuple(self._causes(event, failing, reference))
        shared = set.intersection(*(set(cause.levels) for cause in causes)) if causes else set()
        necessary = tuple(pair for pair in causes[0].levels if pair in shared) if causes else ()
        cures = {combination.levels: tuple(self._cures(combination, event)) for combination in failing}
        return EventVerdict(event, failing, causes, necessary, self._worth_telling(cures), tuple(self._futile(failing)))

    def _worth_telling(self, cures: Mapping[Levels, tuple[Cure, ...]]) -> dict[Levels, tuple[Cure, ...]]:
        """Without the larger cures of combinations on which a smaller one, known from others, was not tried."""
        smaller = {cure.changes for several in cures.values() for cure in several}

        def hides(levels: Levels, cure: Cure) -> bool:
            parts = (known for known in smaller if set(known) < set(cure.changes))
            return any(self._with(levels, part) is None for part in parts)

        return {levels: tuple(c for c in several if not hides(levels, c)) for levels, several in cures.items()}

    def _causes(self, event: Event, failing: Iterable[Combination], reference: Combination) -> Iterable[Cause]:
        """Sets of levels that differ from the reference's and bring the event about, minimal among those seen."""
        enough: list[tuple[Levels, Combination]] = []
        for combination in sorted(failing, key=lambda c: len(differing(c.levels, reference.levels))):
            levels = differing(combination.levels, reference.levels)
            if not any(set(known) <= set(levels) for known, _ in enough):
                enough.append((levels, combination))
        for levels, combination in enough:
            subsets = [subset for size in range(len(levels)) for subset in combinations(levels, size)]
            seen = {subset: self._with(reference.levels, subset) for subset in subsets}
            clear = {subset for subset, c in seen.items() if c and c.avoids(event, combination)}
            undecided = tuple(subset for subset in subsets if subset not in clear)
            without = tuple(c for subset, c in seen.items() if c and subset in clear and len(subset) == len(levels) - 1)
            yield Cause(levels, combination, without, undecided)

    def _cures(self, failing: Combination, event: Event) -> Iterable[Cure]:
        """Changes to combinations of the grid that train, minimal among those seen."""
        onset = max(failing.met(event).values())
        known: list[Levels] = []
        others = self.combinations.values()
        for combination in sorted(others, key=lambda c: len(differing(c.levels, failing.levels))):
            changes = differing(combination.levels, failing.levels)
            trains = combination.trains_instead(failing) and self._no_worse(combination)
            if not changes or not trains or any(set(cure) <= set(changes) for cure in known):
                continue
            known.append(changes)
            until = min(record.steps_done for record, _ in combination.by_seed.values())
            yield Cure(changes, combination, until, until >= ENOUGH_STEPS * max(1, onset))

    def _futile(self, failing: Iterable[Combination]) -> Iterable[Futile]:
        tried: dict[tuple[str, str], list[Combination]] = {}
        for combination in failing:
            for other in self.combinations.values():
                changes = differing(other.levels, combination.levels)
                if len(changes) == 1 and other.by_seed.keys() & combination.failed:
                    tried.setdefault(changes[0], []).append(other)
        for change, others in sorted(tried.items()):
            if not any(other.trains for other in others):
                yield Futile(change, tuple(others))

    def _with(self, combination: Levels, levels: Levels) -> Combination | None:
        wanted = tuple((factor, dict(levels).get(factor, level)) for factor, level in combination)
        return self.combinations.get(wanted)


def event_of(record: CellRecord, autopsy: Autopsy | None) -> Event | None:
    """What happened to a cell; an onset that its replay did not explain is known by its clock alone."""
    if record.error is not None:
        return None
    if record.onset is not None:
        if autopsy is None or autopsy.phase == UNKNOWN:
            return Event(f"unexplained {record.onset.clock}", "", "")
        return Event(autopsy.mechanism, autopsy.phase, autopsy.kind)
    if record.trains.frozen_from is not None:
        return Event(INFINITE_NORM_FREEZE, "backward", "overflow")
    return Event(UNTRAINED, "", "") if record.trains.without_gradient else None


def steps_before(record: CellRecord) -> int:
    """Steps that the cell took before its event began; a trainable without a gradient never had one."""
    if record.onset is not None:
        return record.steps_survived
    frozen_from = record.trains.frozen_from
    return 0 if frozen_from is None else frozen_from - record.first_step


def relative_losses(combinations: Iterable[Combination], losses: Mapping[str, Sequence[float]]) -> dict[Levels, float]:
    """How far the loss of each training combination lies above the best one's: 1.0 is the best.

    Losses compare after as many steps of the same batches: so by seed, among combinations of the same data, vocabulary
    and model, at the step that half of them reached (or the cell's own last), LAST steps averaged. The median over
    seeds; a cell of fewer than LAST steps has none.
    """
    groups: dict[Levels, list[Combination]] = {}
    for combination in combinations:
        if combination.trains:
            same = tuple(pair for pair in combination.levels if pair[0].split(".")[0] in _WHAT_IS_LEARNED)
            groups.setdefault(same, []).append(combination)
    found: dict[Levels, float] = {}
    for group in groups.values():
        series = {
            (c.levels, seed): losses[record.cell_id]
            for c in group
            for seed, (record, _) in c.by_seed.items()
            if len(losses.get(record.cell_id, ())) >= LAST
        }
        usual = sorted(map(len, series.values()))[len(series) // 2] if series else 0
        best: dict[tuple[Any, int], float] = {}
        ratios: dict[Levels, list[float]] = {}
        for (levels, seed), own in series.items():
            steps = min(len(own), usual)
            if (seed, steps) not in best:
                rivals = (other for (_, its), other in series.items() if its == seed and len(other) >= steps)
                best[seed, steps] = min(late_loss(other, steps) for other in rivals)
            lowest = best[seed, steps]
            ratio = late_loss(own, steps) / lowest if 0 < lowest < math.inf else math.inf
            ratios.setdefault(levels, []).append(ratio)
        found |= {levels: median(own) for levels, own in ratios.items()}
    return found


def late_loss(losses: Sequence[float], steps: int) -> float:
    """The mean of the last LAST of the first `steps`; infinite if one is not a number, or there is none."""
    last = losses[max(0, steps - LAST) : steps]
    value = sum(last) / len(last) if last else math.inf
    return math.inf if math.isnan(value) else value


def _loss(record: CellRecord) -> float:
    return math.nan if record.trains.loss_last is None else record.trains.loss_last


def differing(levels: Levels, other: Levels) -> Levels:
    """The pairs of `levels` that `other` does not have."""
    return tuple(pair for pair in levels if pair not in other)


def format_levels(levels: Levels) -> str:
    """As they are typed."""
    return " ".join(f"{factor}={level}" for factor, level in levels) or "nothing"
