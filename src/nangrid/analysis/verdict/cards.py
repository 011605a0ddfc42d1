"""Writes what a grid shows about each event as a card: how often, the cause, the cures, and what does not help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import median

from nangrid.analysis.causes import (
    UNTRAINED,
    Cause,
    Combination,
    Event,
    EventVerdict,
    FutileChange,
    Grid,
    Levels,
    SeenCause,
    steps_before,
)
from nangrid.analysis.claims import ONE_RUN, graded
from nangrid.analysis.claims import Grade as ClaimGrade
from nangrid.analysis.losses import late_loss
from nangrid.analysis.verdict.cures import CURES_SHOWN, CureGroup, event_names, few, grouped_cures, minimal_cures
from nangrid.analysis.verdict.meanings import codes
from nangrid.records.cell import CellRecord
from nangrid.records.explain.certainty import Certainty, Grade
from nangrid.records.mechanisms import TITLES
from nangrid.records.output.answer import CauseCard, CureCard, EventCard, FutileCard, Statement, together

_UNEXPLAINED = "unexplained "
_NOTHING_TRAINS = Certainty(Grade.UNKNOWN, "no combination of this grid trains, so there is nothing to compare with")


def event_cards(grid: Grid, reference: Combination | None, cell_id: str = "") -> list[EventCard]:
    """One card per event, the most frequent first; if nothing trains they know no causes and cures.

    `reference`: the combination that the user requested, if any. `cell_id`: tell of one cell its own event and cures;
    the smallest change that cures another cell may not be the smallest for this one.
    """
    reference = reference or grid.reference
    if reference is None:
        cards = [_card(grid, EventVerdict(event, _failing(grid, event), (), (), ())) for event in grid.events()]
        cards = [replace(card, certainty=_NOTHING_TRAINS) for card in cards]
    else:
        cards = [_card(grid, verdict, reference, cell_id) for verdict in grid.event_verdicts(reference)]
    return [card for card in cards if not cell_id or cell_id in card.happened.cells]


def title_of(event: Event) -> str:
    """The event in words."""
    if event.mechanism == UNTRAINED:
        return "A trainable parameter never received a gradient"
    if event.mechanism.startswith(_UNEXPLAINED):
        clock = event.mechanism.removeprefix(_UNEXPLAINED).replace("_", " ")
        return f"The {clock} is non-finite, and no replay says why"
    return TITLES.get(event.mechanism, event.mechanism)


def _failing(grid: Grid, event: Event) -> list[Combination]:
    return [c for c in grid.combinations.values() if c.onsets(event)]


def _card(grid: Grid, verdict: EventVerdict, reference: Combination | None = None, cell_id: str = "") -> EventCard:
    groups = grouped_cures(grid, verdict, verdict.cures)
    if cell_id:
        helpful = [group.changes for group in groups]
        cured = [c for c in verdict.failing if cell_id in _ids(c.records)]
        of_it = replace(verdict, failing=cured, cures={c.levels: verdict.cures.get(c.levels, ()) for c in cured})
        # of changes that cure it, the one that cures more of the others comes first, as on the card of the grid
        groups = sorted(grouped_cures(grid, of_it, of_it.cures), key=lambda group: helpful.index(group.changes))
    causes: list[Cause | SeenCause] = [*verdict.causes, *verdict.seen]
    return EventCard(
        event=str(verdict.event),
        mechanism=verdict.event.mechanism,
        title=title_of(verdict.event),
        happened=_happened(grid, verdict.event),
        causes=[_cause(cause, verdict.event) for cause in causes[:CURES_SHOWN]],
        certainty=_certainty(verdict),
        cures=[_cure(group, _worse(grid, group, reference)) for group in minimal_cures(groups)],
        no_help=list(_no_help(verdict.futile)),
        undecided=[line for cause in verdict.causes for line in _undecided(cause)],
    )


def _happened(grid: Grid, event: Event) -> Statement:
    cells = [(c, happened) for combination in grid.combinations.values() for c, happened in _pairs(combination)]
    failing = [cell for cell, happened in cells if happened == event]
    steps = sorted({steps_before(cell) for cell in failing})
    when = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    verb = "fails" if len(failing) == 1 else "fail"
    return Statement(f"{len(failing)} of {len(cells)} runs {verb} this way, at {when}.", _ids(failing))


def _pairs(combination: Combination) -> Iterator[tuple[CellRecord, Event | None]]:
    return zip(combination.records, combination.events, strict=True)


def _cause(cause: Cause | SeenCause, event: Event) -> CauseCard:
    failed, total = len(cause.proof.onsets(event)), len(cause.proof.by_seed)
    text = f"{failed} of {total} seeds fail this way" if total > 1 else "a run fails this way"
    without = () if isinstance(cause, SeenCause) else cause.without
    likely = isinstance(cause, SeenCause) or cause.one_run
    if isinstance(cause, SeenCause):
        text += f"; {graded(ClaimGrade.SEEN, cause.more)}"
    elif cause.one_run:
        text = ONE_RUN
    elif without:
        changed = tuple(sorted({level for other in without for level in other.levels} - {*cause.proof.levels}))
        text += f", but not with {', and not with '.join(_spelled(changed))}"
    cells = _ids([*cause.proof.records, *(record for combination in without for record in combination.records)])
    grade = Grade.LIKELY if likely else Grade.PROVEN
    return CauseCard(_spelled(cause.levels), grade, text, cells)


def _certainty(verdict: EventVerdict) -> Certainty:
    if verdict.causes:
        proofs = [cause.proof for cause in verdict.causes]
        seeds = min(len(proof.by_seed) for proof in proofs)
        if any(len(proof.onsets(verdict.event)) < len(proof.by_seed) for proof in proofs):
            return Certainty(Grade.PROVEN, "an exact test rejects chance, although seeds disagree")
        if verdict.causes[0].one_run:
            return Certainty(Grade.LIKELY, "one run alone shows it")
        what = "with one seed" if seeds == 1 else f"with {seeds} seeds"
        return Certainty(Grade.PROVEN, f"by runs that differ in these levels alone, {what}")
    if verdict.seen:
        return Certainty(Grade.LIKELY, "it could still be chance")
    return Certainty(Grade.UNKNOWN, "no run of this grid tells which levels cause it")


def _undecided(cause: Cause) -> Iterator[str]:
    for levels in cause.open[:CURES_SHOWN]:
        alone = f"{together(_spelled(levels))} alone is enough"
        yield f"whether {alone if levels else 'the reference fails this way, too'}"


def _cure(group: CureGroup, worse: str) -> CureCard:
    cells = _ids(record for combination in group.finite for record in combination.records)
    noun = "combinations" if len(cells) > len(group.finite) else "runs"
    steps = min(cure.steps for cure in group.cures)
    ends = Counter(event_names(result) for result in group.results if result in group.failing)
    others = [worse] if worse else []
    others += [f"{count} {'fails' if count == 1 else 'fail'} by {event}" for event, count in ends.most_common()]
    short = [] if all(cure.enough for cure in group.cures) else ["too few steps to be sure"]
    single = [ONE_RUN] if group.one_run else []
    text = "; ".join([f"{_stay(group, noun)} finite for {steps} steps", *others, *short, *single])
    grade = Grade.LIKELY if short or single else Grade.PROVEN
    levels = _spelled(group.changes)
    code = codes(levels, group.results[0].records[0])
    return CureCard(levels, grade, bool(group.failing), text, cells, code)


def _stay(group: CureGroup, noun: str) -> str:
    """On how many of the failing combinations it was tried, and how many of these stay finite, as subject and verb."""
    finite, tried = sum(result in group.finite for result in group.results), len(group.results)
    if group.total == 1:
        return f"the {noun[:-1]} with it stays"
    if finite == tried == group.total:
        return f"with it, {'both' if tried == 2 else f'all {tried}'} failing {noun} stay"
    some = f"all {tried}" if tried == group.total else f"{tried} of the {group.total}"
    stay = f"{finite} {'stays' if finite == 1 else 'stay'}"
    if finite == tried:
        stay = {1: "it stays", 2: "both stay"}.get(tried, "all stay")
    return f"tried on {some} failing {noun}; {stay}"


def _worse(grid: Grid, group: CureGroup, reference: Combination | None) -> str:
    """That some of the finite runs do not train as well as the reference, and to which losses; empty if none is so."""
    if not group.worse or reference is None:
        return ""
    worse = sum(result in group.worse for result in group.results)
    one_each = few([combination.records[0].cell_id for combination in group.worse])
    of = "it" if len(group.results) == 1 else f"{worse} of them ({one_each})"
    losses = sorted({f"{_loss(grid, combination):.3g}" for combination in group.worse}, key=float)
    to = losses[0] if len(losses) == 1 else f"{losses[0]} to {losses[-1]}"
    verb = "trains" if worse == 1 else "train"
    return f"{of} {verb} worse than the reference (loss {to} against {_loss(grid, reference):.3g})"


def _loss(grid: Grid, combination: Combination) -> float:
    """The median over its seeds of the mean of the last few losses."""
    return median(late_loss(grid.losses.get(record.cell_id, ()), record.steps_done) for record in combination.records)


def _no_help(futile: Sequence[FutileChange]) -> Iterator[FutileCard]:
    """One card per factor: its levels that were tried and cure nothing."""
    by_factor: dict[str, list[FutileChange]] = {}
    for change in futile:
        by_factor.setdefault(change.change[0], []).append(change)
    for factor, changes in by_factor.items():
        pairs = {frozenset((a.levels, b.levels)): (a, b) for change in changes for a, b in change.pairs}
        count = "1 pair of runs that differs" if len(pairs) == 1 else f"{len(pairs)} pairs of runs that differ"
        cells = _ids(record for pair in pairs.values() for combination in pair for record in combination.records)
        text = f"{count} in it alone fail{'s' * (len(pairs) == 1)} alike"
        yield FutileCard(factor, [change.change[1] for change in changes], text, cells)


def _spelled(levels: Levels) -> list[str]:
    return [f"{factor}={level}" for factor, level in levels]


def _ids(records: Iterable[CellRecord]) -> list[str]:
    return list(dict.fromkeys(record.cell_id for record in records))
