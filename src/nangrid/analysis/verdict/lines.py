"""Writes the verdict of a grid in plain sentences, each with the cells that prove it."""

from __future__ import annotations

from collections.abc import Sequence

from nangrid.analysis.causes import Cause, Combination, Event, EventVerdict, FutileChange, Grid, format_levels
from nangrid.analysis.claims import ALPHA, ONE_RUN, Grade, graded
from nangrid.analysis.grades import Runs
from nangrid.analysis.losses import WORSE
from nangrid.analysis.verdict.cures import IDS_SHOWN, grouped_cures, shown_cures

_PAIRS_SHOWN = 2
_SEEN_SHOWN = 3


def verdict(grid: Grid, reference: Combination | None = None) -> list[str]:
    """One paragraph per event: how many cells have it, its causes, its cures and their proofs.

    Paragraphs are separated by an empty line. `reference`: the combination that the user requested, if any. Of the
    cures only the `CURES_SHOWN` that help most are given; `every_cure` has all of them.
    """
    cells = sum(len(combination.records) for combination in grid.combinations.values())
    lines = _preamble(grid, cells)
    best = grid.reference
    if not grid.events() or best is None:
        return lines
    why = "as requested" if reference else f"loss within {WORSE:.0%} of the best, fewest failing neighbours"
    reference = reference or best
    lines.append(f"reference: {format_levels(reference.levels)} ({_ids(reference)}): {why}")
    lines.append(_evidence(grid, reference))
    for finding in grid.event_verdicts(reference):
        lines += _event_lines(grid, finding, cells)
    return lines


def _evidence(grid: Grid, reference: Combination) -> str:
    """What the lines of this verdict rest on."""
    if not Runs(list(grid.combinations.values()), reference, None).agree:
        return f"seeds disagree: each cause and cure passed an exact test against chance ({ALPHA:.0%} per verdict)"
    if all(len(combination.by_seed) < 2 for combination in grid.combinations.values()):
        return "one seed: causes and cures hold for it; other seeds may differ"
    return "all seeds of a combination agree: causes and cures need no test"


def every_cure(grid: Grid, reference: Combination | None = None) -> list[str]:
    """One paragraph per event with all its cures, those included that contain a smaller one."""
    reference = reference or grid.reference
    lines: list[str] = []
    for finding in grid.event_verdicts(reference) if reference else ():
        groups = grouped_cures(grid, finding, finding.cures)
        if len(groups) > len(shown_cures(groups)):
            lines += ["", str(finding.event), *(group.line for group in groups)]
    return lines


def _preamble(grid: Grid, cells: int) -> list[str]:
    """Why there is no verdict, or on what it cannot rest."""
    unusable = sum(not combination.usable for combination in grid.combinations.values())
    lines = []
    if cells == 1:
        lines.append(
            "A single run cannot be compared. Its autopsy shows where the NaN appeared; run a grid to find which "
            "choice caused it."
        )
    elif not grid.factors:
        lines.append("Only the seed varies, so no cause can be found. Vary at least one factor.")
    if unusable:
        lines.append(f"{unusable} combinations crashed or timed out and are not counted (rerun with resume=errored).")
    if not grid.events():
        lines.append("No run went non-finite, froze or lost a gradient within the horizon: there is no verdict.")
    elif grid.reference is None:
        lines.append(
            "No combination trains with every seed, so there is no reference to compare with. Add levels that train."
        )
    return lines


def _event_lines(grid: Grid, finding: EventVerdict, cells: int) -> list[str]:
    count = sum(event == finding.event for c in finding.failing for event in c.events)
    lines = ["", f"{finding.event}: {count} of {cells} cells"]
    lines += [line for cause in finding.causes for line in _cause_lines(cause, finding.event)]
    lines += _seen_lines(finding)
    if len(finding.causes) > 1 and finding.necessary:
        lines.append(f"  necessary (in every cause): {format_levels(finding.necessary)}")
    return [*lines, *_cure_lines(grid, finding), *_futile_lines(finding.futile)]


def _seen_lines(finding: EventVerdict) -> list[str]:
    """Failures that may be chance, the most frequent first."""
    seen = sorted(finding.seen, key=lambda cause: (-len(cause.proof.onsets(finding.event)), len(cause.levels)))
    lines = []
    for cause in seen[:_SEEN_SHOWN]:
        proof = _proof(cause.proof, finding.event)
        lines.append(f"  {graded(Grade.SEEN, cause.more)}: {format_levels(cause.levels)} ({proof})")
    if more := len(seen) - _SEEN_SHOWN:
        lines += [f"  and {more} more that could still be chance"] if more > 0 else []
    return lines


def _cause_lines(cause: Cause, event: Event) -> list[str]:
    if not cause.levels:
        return ["  no cause: the reference itself fails this way with some seed"]
    one_run = f", {ONE_RUN}" if cause.one_run else ""
    lines = [f"  sufficient: {format_levels(cause.levels)} ({_proof(cause.proof, event)}){one_run}"]
    if cause.without:
        named = " or ".join(_described(combination, cause, event) for combination in cause.without)
        lines.append(f"    minimal: no such failure in {named}")
    for levels in cause.open[:IDS_SHOWN]:
        what = f"{format_levels(levels)} alone" if levels else "the reference, with these seeds and for as long,"
        lines.append(f"    undecided: whether {what} is sufficient")
    return lines


def _cure_lines(grid: Grid, finding: EventVerdict) -> list[str]:
    groups = grouped_cures(grid, finding, finding.cures)
    if not finding.causes:
        return ["  no cure is judged, because each cause could still be chance"]
    if not groups:
        return _seen_cure_lines(grid, finding) or ["  no cure among the combinations of this grid"]
    shown = shown_cures(groups)
    lines = [group.line for group in shown]
    if more := len(groups) - len(shown):
        lines.append(f"  and {more} larger or less helpful {'cure' if more == 1 else 'cures'}: see report.html")
    return lines


def _seen_cure_lines(grid: Grid, finding: EventVerdict) -> list[str]:
    """Changes after which runs trained, which may be chance."""
    failing = {cure: levels for levels, cures in finding.seen_cures.items() for cure in cures}
    lines = []
    for group in shown_cures(grouped_cures(grid, finding, finding.seen_cures)):
        more = finding.more(failing[group.cures[0]], group.cures[0])
        lines.append(f"  {graded(Grade.SEEN, more)}: {group.line.strip()}")
    return lines


def _futile_lines(futile: Sequence[FutileChange]) -> list[str]:
    """One line per factor: its levels that were tried and cure nothing."""
    by_factor: dict[str, list[FutileChange]] = {}
    for change in futile:
        by_factor.setdefault(change.change[0], []).append(change)
    lines = []
    for factor, changes in by_factor.items():
        levels = ",".join(change.change[1] for change in changes)
        pairs = {frozenset((a.levels, b.levels)): (a, b) for change in changes for a, b in change.pairs}
        named = [f"{a.records[0].cell_id[:8]}/{b.records[0].cell_id[:8]}" for a, b in pairs.values()]
        count = "1 pair fails" if len(named) == 1 else f"{len(named)} pairs fail"
        more = f" and {len(named) - _PAIRS_SHOWN} more" if len(named) > _PAIRS_SHOWN else ""
        lines.append(f"  does not help: {factor}={levels} ({count} alike: {', '.join(named[:_PAIRS_SHOWN])}{more})")
    return lines


def _proof(combination: Combination, event: Event) -> str:
    """The runs that failed: `run 161fec23`, or `2 of 3 seeds, ...`."""
    return f"{_rate(combination, event) or 'run '}{_ids(combination)}"


def _rate(combination: Combination, event: Event) -> str:
    """`2 of 3 seeds, `, or nothing for a single run."""
    total = len(combination.by_seed)
    return f"{len(combination.onsets(event))} of {total} seeds, " if total > 1 else ""


def _described(combination: Combination, cause: Cause, event: Event) -> str:
    """The combination by the levels of the cause that it has."""
    levels = tuple(pair for pair in cause.levels if pair in combination.levels)
    what = f"{format_levels(levels)} alone" if levels else "the reference"
    return f"{what} ({_rate(combination, event)}{_ids(combination)})"


def _ids(combination: Combination) -> str:
    return ", ".join(record.cell_id[:8] for record in combination.records)
