"""Groups the cures of an event by their change, the most helpful first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nangrid.analysis.causes import ENOUGH_STEPS, Combination, Cure, EventVerdict, Grid, Levels, format_levels
from nangrid.analysis.claims import ONE_RUN

IDS_SHOWN = 4
CURES_SHOWN = 3


@dataclass(frozen=True)
class CureGroup:
    """One set of changes, and what it made of each failing combination for which the grid has a run with it."""

    changes: Levels
    cures: tuple[Cure, ...]
    finite: tuple[Combination, ...]
    worse: tuple[Combination, ...]
    """Those of `finite` that do not train, or to a worse loss than the reference."""
    failing: tuple[Combination, ...]
    results: tuple[Combination, ...]
    """One per failing combination for which the grid has a run with the change; two of them may share it."""
    total: int
    """Number of failing combinations."""
    one_run: bool
    """Whether the failure that it cures was shown by one run alone."""

    @property
    def line(self) -> str:
        """The cure as a line of the verdict."""
        tries = f"{len(self.finite)} of {_tries(len(self.finite) + len(self.failing))}"
        steps = min(cure.steps for cure in self.cures)
        short = "" if all(c.enough for c in self.cures) else f", too short to be sure: {ENOUGH_STEPS}x the onset needed"
        ends = Counter(event_names(combination) for combination in self.failing)
        others = [f"; {len(self.worse)} with a worse loss: {few_of(self.worse)}"] if self.worse else []
        others += [f"; {count} {'fails' if count == 1 else 'fail'} by {event}" for event, count in ends.most_common()]
        word = "partial cure" if self.failing else "cure"
        kept = f"{tries} finite for {steps} steps{short}: {few_of(self.finite)}"
        one_run = f", {ONE_RUN}" if self.one_run else ""
        return f"  {word}: {format_levels(self.changes)} ({kept}{''.join(others)}){one_run}"


def event_names(combination: Combination) -> str:
    """The events of a combination, without their phases."""
    return " or ".join(dict.fromkeys(str(event).partition(" (")[0] for event in combination.events if event))


def few_of(combinations: Sequence[Combination]) -> str:
    """Short ids of the first few cells of the combinations."""
    return few([record.cell_id for combination in combinations for record in combination.records])


def grouped_cures(grid: Grid, finding: EventVerdict, cures: Mapping[Levels, tuple[Cure, ...]]) -> list[CureGroup]:
    """Cures by their changes: full cures first, then the most helpful; of equally helpful ones the smaller.

    Only changes that are in `cures` are listed, each with every failing combination for which the grid ran them.
    """
    by_changes: dict[Levels, dict[Levels, Cure]] = {}
    for levels, cure in ((levels, cure) for levels, of_one in cures.items() for cure in of_one):
        by_changes.setdefault(cure.changes, {})[levels] = cure

    def group(changes: Levels, of_one: Mapping[Levels, Cure]) -> CureGroup:
        failing = (c.levels for c in finding.failing if not set(changes) & set(c.levels))
        tried = (grid.with_levels(levels, changes) for levels in failing)
        results = tuple(result for result in tried if result is not None and result.usable)
        usable = list({result.levels: result for result in results}.values())
        finite = tuple(result for result in usable if not any(result.events))
        worse = tuple(result for result in finite if not (result.trains and grid.no_worse(result)))
        fails = tuple(result for result in usable if result not in finite)
        one_run, total = all(map(finding.one_run, of_one)), len(finding.failing)
        return CureGroup(changes, tuple(of_one.values()), finite, worse, fails, results, total, one_run)

    groups = (group(changes, of_one) for changes, of_one in by_changes.items())
    return sorted(groups, key=lambda g: (bool(g.failing), len(g.worse) - len(g.finite), len(g.changes)))


def shown_cures(groups: Sequence[CureGroup]) -> list[CureGroup]:
    """The first few that contain no smaller cure of the same event."""
    # a larger cure helps only where a smaller one fails: true, but rarely what to try first
    minimal = [g for g in groups if not any(set(other.changes) < set(g.changes) for other in groups)]
    return minimal[:CURES_SHOWN]


def minimal_cures(groups: Sequence[CureGroup]) -> list[CureGroup]:
    """Those that contain no smaller cure that helps as much, full ones first, then the smaller.

    A full cure is kept next to a smaller one that is partial.
    """

    def needless(group: CureGroup) -> bool:
        smaller = (other for other in groups if set(other.changes) < set(group.changes))
        return any(not other.failing or group.failing for other in smaller)

    kept = [group for group in groups if not needless(group)]
    return sorted(kept, key=lambda group: (bool(group.failing), len(group.changes)))


def _tries(count: int) -> str:
    """Runs of failing combinations with the change."""
    return "1 try" if count == 1 else f"{count} tries"


def few(cells: Sequence[str]) -> str:
    """Short ids of the first few distinct cells, and how many more there are."""
    unique = list(dict.fromkeys(cell_id[:8] for cell_id in cells))
    return ", ".join(unique[:IDS_SHOWN]) + (f" and {len(unique) - IDS_SHOWN} more" * (len(unique) > IDS_SHOWN))
