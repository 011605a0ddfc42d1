"""What may be said of a grid, in plain sentences, and with which cells?"""

from __future__ import annotations

from collections.abc import Sequence

from nangrid.analysis.causes import (
    ENOUGH_STEPS,
    WORSE,
    Cause,
    Combination,
    Cure,
    Event,
    EventVerdict,
    Futile,
    Grid,
    Levels,
    format_levels,
)

_SHOWN = 4
_CURES = 8


def verdict(grid: Grid, reference: Combination | None = None) -> list[str]:
    """One paragraph an event: where it was met, its causes, its cures and their proofs. True also of thin grids."""
    cells = sum(len(combination.records) for combination in grid.combinations.values())
    unusable = sum(not combination.usable for combination in grid.combinations.values())
    lines = _what_it_cannot_tell(grid, cells, unusable)
    best = grid.reference
    if not grid.events() or best is None:
        return lines
    why = "as asked for" if reference else f"within {WORSE - 1:.0%} of the lowest loss, and furthest from what fails"
    reference = reference or best
    lines.append(f"reference: {format_levels(reference.levels)} ({_ids(reference)}), {why}")
    for finding in grid.findings(reference):
        lines += _of_event(finding, cells)
    return lines


def _what_it_cannot_tell(grid: Grid, cells: int, unusable: int) -> list[str]:
    lines = []
    if cells == 1:
        lines.append("One cell is no comparison: its autopsy says where it arose, a grid says which choice did it.")
    elif not grid.factors:
        lines.append("No factor varies but the seed: nothing can be said of causes.")
    if unusable:
        lines.append(f"{unusable} combinations crashed or ran out of time: they say nothing (resume=errored).")
    if not grid.events():
        lines.append("Nothing went non-finite, froze or lost a gradient within the horizon: no verdict.")
    elif grid.reference is None:
        lines.append(
            "No combination trains with every seed: without one, no level can be told from the rest. "
            "Add levels that train."
        )
    return lines


def _of_event(finding: EventVerdict, cells: int) -> list[str]:
    met = sum(event == finding.event for c in finding.failing for event in c.events)
    lines = ["", f"{finding.event}: {met} of {cells} cells"]
    lines += [line for cause in finding.causes for line in _of_cause(cause, finding.event)]
    if len(finding.causes) > 1:
        lines.append(f"  necessary (in every cause): {format_levels(finding.necessary)}")
    return [*lines, *_of_cures(finding), *_of_futile(finding.futile)]


def _of_cause(cause: Cause, event: Event) -> list[str]:
    if not cause.levels:
        return ["  no cause: the reference itself meets it in some seed"]
    lines = [f"  enough: {format_levels(cause.levels)} ({_rate(cause.proof, event)}, {_ids(cause.proof)})"]
    if cause.without:
        named = "; ".join(_named(combination, cause, event) for combination in cause.without)
        lines.append(f"    without one of them it does not come about: {named}")
    for levels in cause.open[:_SHOWN]:
        what = f"{format_levels(levels)} alone" if levels else "the reference itself, with those seeds and for so long,"
        lines.append(f"    not decided: whether {what} would be enough")
    return lines


def _of_cures(finding: EventVerdict) -> list[str]:
    by_changes: dict[Levels, list[Cure]] = {}
    for cure in (cure for cures in finding.cures.values() for cure in cures):
        by_changes.setdefault(cure.changes, []).append(cure)
    if not by_changes:
        return ["  no cure is in this grid"]
    lines = []
    failing = len(finding.failing)
    for changes, cures in sorted(by_changes.items(), key=lambda item: (len(item[0]), -len(item[1])))[:_CURES]:
        until = min(cure.until for cure in cures)
        short = "" if all(c.enough for c in cures) else f", too few to be sure: {ENOUGH_STEPS}x the onset is wanted"
        ids = _few([record.cell_id for cure in cures for record in cure.proof.records])
        lines.append(
            f"  cure: {format_levels(changes)}, for {len(cures)} of {failing} ({ids}, finite to {until}{short})"
        )
    return lines


def _of_futile(futile: Sequence[Futile]) -> list[str]:
    """One line a factor: its levels that were tried and cure nothing."""
    by_factor: dict[str, list[Futile]] = {}
    for tried in futile:
        by_factor.setdefault(tried.change[0], []).append(tried)
    lines = []
    for factor, several in by_factor.items():
        levels = ",".join(tried.change[1] for tried in several)
        proofs = [proof for tried in several for proof in tried.proofs]
        ids = _few([r.cell_id for proof in proofs for r in proof.records if not r.trained and r.error is None])
        lines.append(f"  no cure: {factor}={levels}, trains in 0 of {len(proofs)} combinations ({ids})")
    return lines


def _few(cells: Sequence[str]) -> str:
    unique = list(dict.fromkeys(cell_id[:8] for cell_id in cells))
    return ", ".join(unique[:_SHOWN]) + (f" and {len(unique) - _SHOWN} more" if len(unique) > _SHOWN else "")


def _rate(combination: Combination, event: Event) -> str:
    total = len(combination.by_seed)
    return f"{len(combination.met(event))} of {total} seeds" if total > 1 else "one seed"


def _named(combination: Combination, cause: Cause, event: Event) -> str:
    """By what it has of the cause."""
    levels = tuple(pair for pair in cause.levels if pair in combination.levels)
    what = f"{format_levels(levels)} alone" if levels else "the reference"
    several = f"{_rate(combination, event)}, " if len(combination.by_seed) > 1 else ""
    return f"{what} ({several}{_ids(combination)})"


def _ids(combination: Combination) -> str:
    return ", ".join(record.cell_id[:8] for record in combination.records)
