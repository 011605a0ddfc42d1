"""Finds the levels that caused each event of a finished grid, and the changes of level that cure it.

Everything is relative to a reference combination that trains. A *cause* of an event is a minimal set of levels that is
sufficient for it when put into the reference; a *cure* is a minimal set of changes after which a failing combination
trains. The literature calls them minimal unsatisfiable subsets and minimal correction sets (Liffiton et al. 2016);
here they are minimal among the combinations that were run. A cell that failed with another event first is no evidence
about this one: the other event is a competing risk.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any

from nangrid.analysis.grades import CauseTests, CureTests, Runs, shown_again, smallest, without_scatter
from nangrid.analysis.losses import excess
from nangrid.analysis.onsets import level_name, varying_factors
from nangrid.records.autopsy import Autopsy
from nangrid.records.cell import CellRecord
from nangrid.records.mechanisms import INFINITE_NORM_FREEZE, UNKNOWN

Levels = tuple[tuple[str, str], ...]
"""(factor, level) pairs, in the grid's order of factors."""

ENOUGH_STEPS = 4
"""A cure must stay finite for this many times the failing onset."""

_CHANGES_THE_TASK = ("data", "vocab", "model", "quant")
"""Groups of factors under which losses are not comparable: other text, or other initial weights."""

UNTRAINED = "no-gradient"


@dataclass(frozen=True, order=True)
class Event:
    """What happened to a cell: the phase, the IEEE kind and the mechanism of its origin."""

    mechanism: str
    phase: str
    kind: str

    def __str__(self) -> str:
        """`mechanism (phase kind)`, or the mechanism alone where no autopsy gave a phase."""
        return f"{self.mechanism} ({self.phase} {self.kind})" if self.phase else self.mechanism


@dataclass(frozen=True)
class Combination:
    """The cells of one combination of levels, one per seed."""

    levels: Levels
    records: tuple[CellRecord, ...]
    events: tuple[Event | None, ...]
    """One per record; None if the cell had no event."""

    @cached_property
    def by_seed(self) -> dict[Any, tuple[CellRecord, Event | None]]:
        """The cells that are evidence, by seed: crashes and timeouts are not."""
        pairs = zip(self.records, self.events, strict=True)
        return {record.factors.get("seed"): (record, event) for record, event in pairs if record.error is None}

    @property
    def usable(self) -> bool:
        """Whether any cell is evidence."""
        return bool(self.by_seed)

    def onsets(self, event: Event) -> dict[Any, int]:
        """Steps before the event, by seed, of the cells that failed with it."""
        return {seed: steps_before(record) for seed, (record, happened) in self.by_seed.items() if happened == event}

    def avoids(self, event: Event, failing: Combination) -> bool:
        """Whether no seed has the event here, and one outlives the onset that it has in `failing`.

        A seed that failed with another event is no evidence.
        """
        outlives = [
            seed
            for seed, step in failing.onsets(event).items()
            if seed in self.by_seed and self.by_seed[seed][1] is None and self.by_seed[seed][0].steps_done > step
        ]
        return bool(outlives) and not self.onsets(event)

    @cached_property
    def failed(self) -> set[Any]:
        """The seeds with which it does not train."""
        return {seed for seed, (record, _) in self.by_seed.items() if not record.trained}

    @cached_property
    def trains(self) -> bool:
        """Whether every seed trained."""
        return self.usable and all(record.trained for record, _ in self.by_seed.values())

    def tests(self, failing: Combination) -> bool:
        """Whether it was run with a seed that fails in `failing`."""
        return bool(failing.failed & self.by_seed.keys())


@dataclass(frozen=True)
class Cause:
    """Levels that are sufficient for an event when put into the reference, and the cells that prove it."""

    levels: Levels
    proof: Combination
    without: tuple[Combination, ...]
    """The combinations with all but one of the levels, in which the event does not happen."""
    open: tuple[Levels, ...]
    """Smaller sets that the grid leaves undecided: it lacks the cell, or another event came first."""
    one_run: bool = False
    """Whether one run alone shows it, and the autopsy of that run does not explain all of it."""


@dataclass(frozen=True)
class SeenCause:
    """Levels under which an event was seen, which could still be chance."""

    levels: Levels
    proof: Combination
    tests: CauseTests | None = field(compare=False, repr=False)
    """None where seeds agree, but other runs that hold the levels do not."""

    @property
    def more(self) -> int | None:
        """Seeds to add, after which the rates seen would tell; None if that is not known."""
        return self.tests.more(self.levels, len(self.proof.by_seed)) if self.tests else None


@dataclass(frozen=True)
class Cure:
    """Changes of level after which a failing combination trains, and the cells that prove it."""

    changes: Levels
    proof: Combination
    steps: int
    """Steps for which every seed stayed finite."""
    enough: bool
    """Whether that is ENOUGH_STEPS times the failing onset."""


@dataclass(frozen=True)
class FutileChange:
    """One change of level after which failing combinations failed alike, and none trained."""

    change: tuple[str, str]
    pairs: tuple[tuple[Combination, Combination], ...]
    """Each failing combination, and what the change made of it."""


@dataclass(frozen=True)
class EventVerdict:
    """The causes and cures of one event."""

    event: Event
    failing: Sequence[Combination]
    causes: tuple[Cause, ...]
    """Those that are proven."""
    seen: tuple[SeenCause, ...]
    necessary: Levels
    """Levels that are in every cause, whatever part of a cause is undecided."""
    cures: Mapping[Levels, tuple[Cure, ...]] = field(default_factory=dict)
    """Those that are proven, by the levels of the failing combination."""
    seen_cures: Mapping[Levels, tuple[Cure, ...]] = field(default_factory=dict)
    futile: tuple[FutileChange, ...] = ()
    tests: CureTests | None = field(default=None, compare=False, repr=False)

    def one_run(self, failing: Levels) -> bool:
        """Whether each of these causes that a failing combination holds was shown by one run alone."""
        return all(cause.one_run for cause in self.causes if set(cause.levels) <= set(failing))

    def more(self, failing: Levels, cure: Cure) -> int | None:
        """Seeds to add, after which the rates seen would tell that it is a cure."""
        return self.tests.more(failing, cure.proof.levels, len(cure.proof.by_seed)) if self.tests else None


class Grid:
    """The combinations of a grid."""

    def __init__(
        self,
        records: Sequence[CellRecord],
        autopsies: Mapping[str, Autopsy],
        losses: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """`losses` are by cell_id, one per step; without them the last loss stands for every step."""
        table = varying_factors([record.factors for record in records])
        self.factors = [str(column) for column in table.columns if column != "seed"]
        by_levels: dict[Levels, list[CellRecord]] = {}
        for record, row in zip(records, table[self.factors].map(level_name).to_numpy(), strict=True):
            by_levels.setdefault(tuple(zip(self.factors, row, strict=True)), []).append(record)
        self.combinations = {
            levels: Combination(levels, tuple(cells), tuple(event_of(c, autopsies.get(c.cell_id)) for c in cells))
            for levels, cells in by_levels.items()
        }
        self.losses = losses or {r.cell_id: [_loss(r)] * r.steps_done for r in records}
        self.excess = self._excess()
        """Per combination that trains, by how many tolerances its loss is above the best: up to 1 is no worse."""
        self._verdicts: dict[Levels, list[EventVerdict]] = {}
        self._autopsies = autopsies

    def _excess(self) -> dict[Levels, float]:
        """Losses are compared among combinations of the same data, vocabulary and model."""
        tasks: dict[Levels, dict[tuple[Levels, Any], Sequence[float]]] = {}
        for combination in (c for c in self.combinations.values() if c.trains):
            task = tuple(pair for pair in combination.levels if pair[0].split(".")[0] in _CHANGES_THE_TASK)
            for seed, (record, _) in combination.by_seed.items():
                tasks.setdefault(task, {})[combination.levels, seed] = self.losses.get(record.cell_id, ())
        return {levels: value for series in tasks.values() for levels, value in excess(series).items()}

    def events(self) -> list[Event]:
        """Every event of the grid, the most frequent first."""
        happened = Counter(event for combination in self.combinations.values() for event in combination.events if event)
        return sorted(happened, key=lambda event: (-happened[event], event))

    @cached_property
    def reference(self) -> Combination | None:
        """The combination to compare with: it trains, to no worse than the best loss, and few neighbours fail.

        A neighbour differs in one factor. Fewest failing neighbours first, then most that train, then the lowest loss.
        None if no combination trains with every seed.
        """
        good = [c for c in self.combinations.values() if c.trains and self.no_worse(c)]
        neighbours = {c.levels: self._neighbours(c) for c in good}
        # in a sparse grid a combination with hardly a neighbour would win by having none that fails
        explored = max((len(others) for others in neighbours.values()), default=0) / 2

        def risk(c: Combination) -> tuple[int, int, float]:
            failing, training = (sum(outcome[i] for outcome in neighbours[c.levels]) for i in (0, 1))
            # the loss comes last: losses this close differ between processors
            return failing, -training, self.excess[c.levels]

        return min((c for c in good if len(neighbours[c.levels]) >= explored), key=risk, default=None)

    def no_worse(self, combination: Combination) -> bool:
        """Whether the combination trains to a loss that is no worse than the best one's."""
        return self.excess.get(combination.levels, math.inf) <= 1

    def _neighbours(self, combination: Combination) -> list[tuple[bool, bool]]:
        """Per neighbour: whether it fails with some seed, and whether it trains with every seed."""
        near = (c for c in self.combinations.values() if sum(map(operator.ne, c.levels, combination.levels)) == 1)
        return [(bool(c.failed), c.trains) for c in near]

    def event_verdicts(self, reference: Combination) -> list[EventVerdict]:
        """Causes and cures of each event, relative to the reference."""
        if reference.levels not in self._verdicts:
            self._verdicts[reference.levels] = self._judged(reference)
        return self._verdicts[reference.levels]

    def _judged(self, reference: Combination) -> list[EventVerdict]:
        found = {event: self._causes(event, reference) for event in self.events()}
        runs = Runs([*self.combinations.values()], reference, None)
        proven = {cause.levels: cause.open for causes, _ in found.values() for cause in causes}
        tests = CureTests(runs, proven, [of_one.levels for _, seen in found.values() for of_one in seen])
        return [self._event_verdict(event, *causes, tests) for event, causes in found.items()]

    def with_levels(self, combination: Levels, levels: Levels) -> Combination | None:
        """The combination that differs from `combination` by having `levels`; None if the grid lacks it."""
        changed = tuple((factor, dict(levels).get(factor, level)) for factor, level in combination)
        return self.combinations.get(changed)

    def _failing(self, event: Event) -> list[Combination]:
        return [c for c in self.combinations.values() if c.onsets(event)]

    def _event_verdict(
        self, event: Event, causes: Sequence[Cause], seen: Sequence[SeenCause], tests: CureTests
    ) -> EventVerdict:
        failing = self._failing(event)
        cures = self._minimal({combination.levels: tuple(self._cures(combination, event)) for combination in failing})
        # what no proven cause explains may have failed by chance, and then trains by itself
        failing = [c for c in failing if any(set(cause.levels) <= set(c.levels) for cause in causes)]
        cures = {c.levels: cures[c.levels] for c in failing}
        proven = {f: tuple(cure for cure in cures[f] if tests.proven(f, cure.proof.levels)) for f in cures}
        others = {f: tuple(cure for cure in cures[f] if cure not in proven[f]) for f in cures}
        necessary = () if seen else _necessary(causes)
        futile = tuple(self._futile(event, failing))
        return EventVerdict(event, failing, tuple(causes), tuple(seen), necessary, proven, others, futile, tests)

    def _minimal(self, cures: Mapping[Levels, tuple[Cure, ...]]) -> dict[Levels, tuple[Cure, ...]]:
        """The cures without those that may not be minimal.

        A cure may not be minimal where part of it cures another combination and was not tried on this one.
        """
        known = {cure.changes for several in cures.values() for cure in several}

        def has_untried_part(levels: Levels, cure: Cure) -> bool:
            parts = (changes for changes in known if set(changes) < set(cure.changes))
            return any(self.with_levels(levels, part) is None for part in parts)

        return {
            levels: tuple(c for c in several if not has_untried_part(levels, c)) for levels, several in cures.items()
        }

    def _causes(self, event: Event, reference: Combination) -> tuple[list[Cause], list[SeenCause]]:
        """The causes that are proven, and the sets of levels that could still be chance."""
        runs = Runs([*self.combinations.values()], reference, event)
        candidates = {differing(c.levels, reference.levels): c for c in self._failing(event)}
        if runs.agree:
            minimal = {levels: candidates[levels] for levels in smallest(candidates)}
            sure = [levels for levels, proof in minimal.items() if len(proof.by_seed) > 1]
            kept = without_scatter(runs, list(minimal), sure)
            seen = [SeenCause(levels, proof, None) for levels, proof in minimal.items() if levels not in kept]
            others = {levels: [other for other in minimal if other != levels] for levels in kept}
            steady = [s for s in kept if s in sure or shown_again(runs, s, others[s], self._autopsies_of(minimal[s]))]
            found = [self._cause(event, levels, candidates[levels], reference, None) for levels in kept]
            return sorted((replace(c, one_run=c.levels not in steady) for c in found), key=lambda c: c.one_run), seen
        tests = CauseTests(runs, (differing(c.levels, reference.levels) for c in self.combinations.values()))
        kept = list(tests.accept(candidates))
        rest = [levels for levels in candidates if not any(set(cause) <= set(levels) for cause in kept)]
        seen = [SeenCause(s, candidates[s], tests) for s in smallest(rest)]
        return [self._cause(event, levels, candidates[levels], reference, tests) for levels in kept], seen

    def _autopsies_of(self, proof: Combination) -> list[Autopsy | None]:
        return [self._autopsies.get(record.cell_id) for record, event in proof.by_seed.values() if event]

    def _cause(
        self, event: Event, levels: Levels, proof: Combination, reference: Combination, tests: CauseTests | None
    ) -> Cause:
        subsets = [subset for size in range(len(levels)) for subset in combinations(levels, size)]
        tried = {subset: self.with_levels(reference.levels, subset) for subset in subsets}
        clear = {
            subset
            for subset, c in tried.items()
            if c and c.avoids(event, proof) and (tests is None or tests.excludes(levels, subset))
        }
        undecided = tuple(subset for subset in subsets if subset not in clear)
        without = tuple(c for subset, c in tried.items() if c and subset in clear and len(subset) == len(levels) - 1)
        return Cause(levels, proof, without, undecided)

    def _cures(self, failing: Combination, event: Event) -> Iterable[Cure]:
        """Changes that lead to combinations that train, minimal among those that were run."""
        onset = max(failing.onsets(event).values())
        known: list[Levels] = []
        for combination in sorted(self.combinations.values(), key=lambda c: len(differing(c.levels, failing.levels))):
            changes = differing(combination.levels, failing.levels)
            trains = combination.trains and combination.tests(failing) and self.no_worse(combination)
            if not changes or not trains or any(set(cure) <= set(changes) for cure in known):
                continue
            known.append(changes)
            steps = min(record.steps_done for record, _ in combination.by_seed.values())
            yield Cure(changes, combination, steps, steps >= ENOUGH_STEPS * max(1, onset))

    def _futile(self, event: Event, failing: Iterable[Combination]) -> Iterable[FutileChange]:
        tried: dict[tuple[str, str], list[tuple[Combination, Combination]]] = {}
        for combination in failing:
            for other in self.combinations.values():
                changes = differing(other.levels, combination.levels)
                if len(changes) == 1 and other.tests(combination):
                    tried.setdefault(changes[0], []).append((combination, other))
        for change, pairs in sorted(tried.items()):
            # a run that failed in another way first says nothing about this event
            alike = tuple((before, after) for before, after in pairs if event in after.events)
            if alike and not any(after.trains for _, after in pairs):
                yield FutileChange(change, alike)


def _necessary(causes: Sequence[Cause]) -> Levels:
    """Levels that are in every cause, and in every part of one that may be enough."""
    possible = [levels for cause in causes for levels in (cause.levels, *cause.open)]
    shared = set.intersection(*map(set, possible)) if possible else set()
    return tuple(pair for pair in causes[0].levels if pair in shared) if causes else ()


def event_of(record: CellRecord, autopsy: Autopsy | None) -> Event | None:
    """The event of a cell, or None. An onset without an autopsy is known by its clock alone."""
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
    """Steps that the cell took before its event. 0 for a trainable that never got a gradient."""
    if record.onset is not None:
        return record.steps_survived
    frozen_from = record.trains.frozen_from
    return 0 if frozen_from is None else frozen_from - record.first_step


def _loss(record: CellRecord) -> float:
    return math.nan if record.trains.loss_last is None else record.trains.loss_last


def differing(levels: Levels, other: Levels) -> Levels:
    """The pairs of `levels` that `other` does not have."""
    return tuple(pair for pair in levels if pair not in other)


def format_levels(levels: Levels) -> str:
    """`dtype=fp16 init=zero`; `nothing` for no levels."""
    return " ".join(f"{factor}={level}" for factor, level in levels) or "nothing"
