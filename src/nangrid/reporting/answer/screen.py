"""Lays an answer out for a terminal: one screen of 80 columns, each line headed by what it says."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from nangrid.records.output.answer import Answer, EventCard, change_first, shows, together

_WIDTH = 80
_HEAD = 13
_GRIDS = ("grid", "diagnosis")
_MOST, _JOINED = 2, 4
"""Changes, and statements on one line, that are shown; `--json` has all of them."""
_EVENTS = 3
_LINES = 4
"""Lines of the longest statement."""
Part = tuple[str, str]
"""The head of a line, and its text."""


def as_screen(answer: Answer) -> str:
    """The answer as lines of at most 80 columns."""
    parts = [("what", answer.headline), *(_of_grid(answer) if answer.about in _GRIDS else _of_run(answer))]
    lines = [line for head, text in parts if text for line in _wrapped(head, text)]
    return "\n".join([*lines, *([f"{'next':{_HEAD}}{answer.next}"] if answer.next else [])])


def _of_grid(answer: Answer) -> Iterator[Part]:
    for number, card in enumerate(answer.events[:_EVENTS], 1):
        finding = next((finding for finding in answer.findings if shows(finding, card)), None)
        yield f"{number}. event", f"{card.title}. {card.happened.text}"
        if finding is not None:
            yield "   where", f"run {shows(finding, card)[:8]}: {finding.where}: {finding.operation}"
        yield from _cause("   cause", card, "")
        for cure in card.cures[:1]:
            yield "   change", f"{together(cure.levels)}: {cure.text}"
            yield "   in code", "; ".join(cure.code)
        yield "   no help", _alone(card)
    if (more := len(answer.events) - _EVENTS) > 0:
        yield "", f"and {more} rarer events: --json lists them"
    yield "not checked", _joined(answer.unchecked)


def _of_run(answer: Answer) -> Iterator[Part]:
    for finding in answer.findings[:1]:
        yield "where", finding.where
        yield "operation", finding.operation
        yield "tokens", finding.tokens
        yield "why", f"{finding.mechanism}: {finding.why}"
    for card in answer.events[:1]:
        yield from _cause("cause", card, " by runs of this grid")
    for finding in answer.findings[:1]:
        yield "how sure", f"where: {finding.origin}"
        yield "", f"why: {finding.reason}"
    for number, (text, code) in enumerate(change_first(answer)[:_MOST]):
        yield "change first" if number == 0 else "or", text
        yield "in code", code
    yield "no help", "; ".join(filter(None, map(_alone, answer.events)))
    yield "ruled out", _joined([line for finding in answer.findings for line in finding.ruled_out])
    unchecked = [line for finding in answer.findings for line in finding.unchecked]
    yield "not checked", _joined([*unchecked, *answer.unchecked])


def _cause(head: str, card: EventCard, by: str) -> Iterator[Part]:
    for cause in card.causes[:1]:
        yield head, f"{together(cause.levels)}: {cause.text} ({card.certainty.grade}{by})"
    if not card.causes:
        yield head, str(card.certainty)


def _alone(card: EventCard) -> str:
    """The factors that do not help if nothing else is changed with them."""
    *several, last = [futile.factor for futile in card.no_help] or [""]
    return f"{' or '.join(filter(None, [', '.join(several), last]))} alone" if last else ""


def _joined(texts: Sequence[str]) -> str:
    more = len(texts) - _JOINED
    return "; ".join([*texts[:_JOINED], *([f"and {more} more, see --json"] if more > 0 else [])])


def _wrapped(head: str, text: str) -> list[str]:
    indent = " " * _HEAD
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"{head:{_HEAD}}", subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False, max_lines=_LINES, placeholder=" ...",
    )  # fmt: skip
