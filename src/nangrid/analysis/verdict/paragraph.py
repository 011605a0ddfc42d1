"""Says what a grid shows in one paragraph of plain English, which the terminal, the page and `why` share."""

from __future__ import annotations

from collections.abc import Sequence

from nangrid.records.cell import CellRecord
from nangrid.records.explain.certainty import Grade
from nangrid.records.output.answer import EventCard, together

_EVENTS_TOLD = 3


def paragraph(records: Sequence[CellRecord], cards: Sequence[EventCard]) -> str:
    """How many runs failed, and per event what causes it and what cures it, in short sentences."""
    return " ".join(sentences(records, cards))


def sentences(records: Sequence[CellRecord], cards: Sequence[EventCard]) -> list[str]:
    """The sentences of the paragraph: first how many runs failed, then one per event."""
    return [counted(records, cards), *map(event_sentence, cards[:_EVENTS_TOLD]), *_rest(cards)]


def counted(records: Sequence[CellRecord], cards: Sequence[EventCard]) -> str:
    """How many runs failed, in one sentence."""
    failed = len({cell for card in cards for cell in card.happened.cells})
    crashed = sum(record.error is not None for record in records)
    steps = max((record.steps_done for record in records), default=0)
    also = f" {crashed} crashed or timed out and {'is' if crashed == 1 else 'are'} not counted." if crashed else ""
    if not cards:
        finite = len(records) - crashed
        if not finite:
            return f"No run can be judged.{also}"
        runs = f"All {finite} runs" if finite > 1 else "The run" if len(records) == 1 else "One run"
        return f"{runs} stayed finite for {steps} steps; what happens later is not known.{also}"
    ways = "one way" if len(cards) == 1 else f"{len(cards)} ways"
    return f"{failed} of {len(records)} runs failed, in {ways}.{also}"


def event_sentence(card: EventCard) -> str:
    """One event with its cause and its first cure."""
    count = len(card.happened.cells)
    return f"{card.title} ({count} {'run' if count == 1 else 'runs'}): {_cause(card)}, {_cure(card)}."


def _cause(card: EventCard) -> str:
    if not card.causes:
        return f"no cause is known, because {card.certainty.because}"
    first, *rest = card.causes
    others = [cause for cause in rest if cause.grade == first.grade]
    if not first.levels:
        return "the reference itself fails this way"
    verb = "causes it" if first.grade == Grade.PROVEN else "may cause it (this could still be chance)"
    more = f", and so {'does one other set' if len(others) == 1 else f'do {len(others)} other sets'} of levels"
    return f"{together(first.levels)} {verb}{more if others else ''}"


def _cure(card: EventCard) -> str:
    if not card.cures:
        return "and no run shows a cure"
    first = card.cures[0]
    if first.grade != Grade.PROVEN:
        return f"and {together(first.levels)} may cure it, which is not proven"
    return f"and {together(first.levels)} {'cures some of the runs' if first.partial else 'cures it'}"


def _rest(cards: Sequence[EventCard]) -> list[str]:
    more = len(cards) - _EVENTS_TOLD
    return [f"{more} rarer {'event is' if more == 1 else 'events are'} listed below."] if more > 0 else []
