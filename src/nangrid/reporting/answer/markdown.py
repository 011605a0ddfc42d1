"""Writes an answer as Markdown for an issue: no secrets, and no text of the data unless it was requested."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from nangrid.records.output.answer import (
    CRASHED,
    FAILED,
    HEALTHY,
    UNFINISHED,
    Answer,
    EventCard,
    Finding,
    change_first,
    shows,
    together,
)
from nangrid.records.safety.text import printable

_HEADINGS = {
    FAILED: "why the training failed",
    HEALTHY: "nothing went wrong",
    CRASHED: "the training crashed",
    UNFINISHED: "the training has not finished",
}


def as_markdown(answer: Answer) -> str:
    """The whole answer with headings, and the environment in a folded table."""
    parts = [f"### nangrid: {_HEADINGS[answer.outcome]}", "", _text(answer.summary)]
    findings = list(answer.findings)
    for card in answer.events:
        parts += ["", *_event(card)]
        for finding in (f for f in answer.findings if shows(f, card)):
            parts += ["", *_finding(finding)]
            findings.remove(finding)
    for finding in findings:
        parts += ["", *_finding(finding)]
    if answer.about not in ("grid", "diagnosis"):
        parts += _list("Change first", [text for text, _ in change_first(answer)])
    if answer.diagnosis:
        parts += ["", "```text", *(line.replace("```", "'''") for line in answer.diagnosis), "```"]
    parts += _list("Not checked", answer.unchecked)
    return "\n".join([*parts, "", *_environment(answer)])


def _event(card: EventCard) -> Iterator[str]:
    yield f"**{_text(card.title)}** ({_code(card.event)}): {_text(card.happened.text)}"
    yield ""
    for cause in card.causes:
        yield f"- cause: {together(list(map(_code, cause.levels)))}: {_text(cause.text)}{_runs(cause.cells)}"
    yield f"- how sure is the cause: {_text(str(card.certainty))}"
    for cure in card.first_cures:
        word = "partial cure" if cure.partial else "cure"
        yield f"- {word}: {together(list(map(_code, cure.levels)))}: {_text(cure.text)}{_runs(cure.cells)}"
        yield from (f"  - in a script: {_code(code)}" for code in cure.code)
    for futile in card.no_help:
        levels = f"{futile.factor}={','.join(futile.levels)}"
        yield f"- does not help alone: {_code(levels)}: {_text(futile.text)}{_runs(futile.cells)}"


def _finding(finding: Finding) -> Iterator[str]:
    rows = {
        "where": _code(finding.where),
        "operation": _code(finding.operation),
        "tokens": _code(finding.tokens),
        "why": f"{_code(finding.mechanism)}: {_text(finding.why)}",
        "how sure": f"origin {_text(str(finding.origin))}; mechanism {_text(str(finding.reason))}",
        "script that fails alone": _code(finding.operand_script or ""),
        "autopsy": _code(finding.autopsy),
    }
    yield "| | |"
    yield "| --- | --- |"
    for name, value in rows.items():
        if value:
            yield f"| {name} | {value} |"
    yield from _list("Ruled out", finding.ruled_out)
    yield from _list("Not checked in the replay", finding.unchecked)


def _list(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"**{title}**", "", *(f"- {_text(line)}" for line in lines)] if lines else []


def _environment(answer: Answer) -> Iterator[str]:
    source = "versions on this machine" if answer.about in ("autopsy", "trainer", "watch") else "as the run recorded it"
    yield f"<details><summary>Environment ({source})</summary>"
    yield ""
    yield "| | |"
    yield "| --- | --- |"
    for name, value in answer.environment.items():
        if value not in (None, ""):
            yield f"| {_text(name)} | {_text(str(value))} |"
    yield ""
    yield "</details>"


def _runs(cells: Sequence[str]) -> str:
    return f" ({', '.join(_code(cell[:8]) for cell in cells[:4])}{' ...' if len(cells) > 4 else ''})" if cells else ""


def _text(text: str) -> str:
    """Text from a record that Markdown shows as it is: no tag, no link, no table's bar, one line."""
    # secrets first: once escaped, none would be found
    escaped = re.sub(r"([\\`*_{}\[\]>|~&])", r"\\\1", _one_line(text)).replace("<", "&lt;")
    return re.sub(r"([@#])(?=\w)", "\\1\u200b", escaped)  # GitHub would notify a user, or refer to another issue


def _code(text: str) -> str:
    return f"`{_one_line(text).replace('`', chr(39)).replace('|', chr(0x2223))}`" if text else ""


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())
