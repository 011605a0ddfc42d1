"""Answers about a grid, and about a diagnosis, which is a grid with a result of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nangrid.analysis.causes import Event, event_of
from nangrid.analysis.claims import Grade as ClaimGrade
from nangrid.analysis.evidence import Judged, judge
from nangrid.analysis.verdict import counted, event_cards, event_sentence, paragraph, title_of
from nangrid.analysis.verdict.meanings import codes
from nangrid.records.cell import CellRecord
from nangrid.records.diagnosis import ClaimRecord, DiagnosisRecord
from nangrid.records.explain.certainty import Certainty, Grade
from nangrid.records.explain.finding import finding_of
from nangrid.records.grid import GridDirectory
from nangrid.records.output.answer import (
    CRASHED,
    FAILED,
    HEALTHY,
    Answer,
    CauseCard,
    CureCard,
    EventCard,
    Finding,
    Statement,
)
from nangrid.records.safety.command import typed
from nangrid.reporting.answer.of_cell import of_cell


def of_grid(
    directory: GridDirectory, reference: Sequence[str] = (), *, judged: Judged | None = None, with_text: bool
) -> Answer:
    """The answer about a grid. InputError if it holds no finished cell; of a single run, the answer about that run.

    `judged`: what its runs show, if they were read already.
    """
    judged = judged or judge(directory, reference)
    if not reference and judged.diagnoses and judged.diagnoses[-1].claims:
        return _of_diagnosis(directory, judged, judged.diagnoses[-1], with_text=with_text)
    if len(judged.records) == 1:
        (record,) = judged.records
        return of_cell(directory.cell(record.cell_id), record, with_text=with_text)
    cards = event_cards(judged.grid, judged.chosen)
    crashed = all(record.error is not None for record in judged.records)
    return Answer(
        about="grid",
        path=str(directory.path),
        outcome=FAILED if cards else CRASHED if crashed else HEALTHY,
        headline=counted(judged.records, cards),
        summary=paragraph(judged.records, cards),
        events=cards,
        findings=_findings(directory, judged, [card.happened.cells for card in cards], with_text=with_text),
        unchecked=_unchecked(judged, cards),
        next=typed("python -m src.report", directory.path),
        environment=judged.records[0].environment,
    )


def _findings(directory: GridDirectory, judged: Judged, groups: list[list[str]], *, with_text: bool) -> list[Finding]:
    """The autopsy of the first run of each group that has one."""
    shown = [next((cell for cell in cells if cell in judged.autopsies), None) for cells in groups]
    paths = {record.cell_id: str(record.autopsy) for record in judged.records if record.autopsy}
    return [
        finding_of(judged.autopsies[cell], (directory.cell(cell) / paths[cell]).parent, with_text=with_text)
        for cell in shown
        if cell is not None
    ]


def _unchecked(judged: Judged, cards: list[EventCard]) -> list[str]:
    """What these runs cannot show."""
    seeds = min(len(combination.records) for combination in judged.grid.combinations.values())
    steps = max(record.steps_done for record in judged.records)
    lines = ["whether other seeds agree: each combination ran with one seed"] if seeds == 1 else []
    if any(record.status == "finite" for record in judged.records):
        lines.append(f"what happens after {steps} steps, where the longest run ended")
    return [*(line for card in cards for line in card.undecided), *lines, *judged.skipped]


def _of_diagnosis(directory: GridDirectory, judged: Judged, record: DiagnosisRecord, *, with_text: bool) -> Answer:
    failing = next((r for r in judged.records if r.cell_id == record.failing), judged.records[0])
    findings = _findings(directory, judged, [[record.failing]], with_text=with_text)
    card = _card_of(record, failing, event_of(failing, judged.autopsies.get(failing.cell_id)))
    return Answer(
        about="diagnosis",
        path=str(directory.path),
        outcome=FAILED,
        headline="A search compared a failing run with one that trains.",
        summary=f"A search compared a failing run with one that trains. {event_sentence(card)}",
        events=[card],
        findings=findings,
        diagnosis=record.lines if with_text else list(_without_tokens(record.lines)),
        unchecked=[line.strip() for line in record.lines if line.strip().startswith("undecided:")],
        next=typed("python -m src.report", directory.path),
        environment=failing.environment,
    )


def _without_tokens(lines: Sequence[str]) -> Iterator[str]:
    """The lines, without the one that shows text of the data, and without what it continues on."""
    inside = False
    for line in lines:
        inside = line.startswith("  tokens: ") or (inside and line.startswith("    "))
        if not inside:
            yield line


def _card_of(record: DiagnosisRecord, failing: CellRecord, event: Event | None) -> EventCard:
    """The claims of a diagnosis as a card."""
    causes = [claim for claim in record.claims if claim.kind == "cause"]
    cures = [claim for claim in record.claims if claim.kind == "cure"]
    cells = list(dict.fromkeys([record.failing, *(cell for claim in causes for cell in claim.cells)]))
    runs = "1 run fails" if len(cells) == 1 else f"{len(cells)} runs fail"
    return EventCard(
        event=str(event) if event else "unknown",
        mechanism=event.mechanism if event else "unknown",
        title=title_of(event) if event else "The run fails",
        happened=Statement(f"{runs} this way.", cells),
        causes=[_cause(claim) for claim in causes],
        certainty=_certainty(causes),
        cures=[_cure(claim, failing) for claim in cures],
        no_help=[],
        undecided=[],
    )


_GRADES: dict[str, Grade] = {ClaimGrade.PROVEN: Grade.PROVEN, ClaimGrade.SEEN: Grade.LIKELY}
"""Grades of a search -> those of an answer; what the search left undecided is unknown."""


def _cause(claim: ClaimRecord) -> CauseCard:
    grade = _GRADES.get(claim.grade, Grade.UNKNOWN)
    chance = "" if grade == Grade.PROVEN else f"; {claim.grade}"
    return CauseCard(claim.levels, grade, f"{claim.count} of {claim.seeds} seeds fail{chance}", claim.cells)


def _cure(claim: ClaimRecord, failing: CellRecord) -> CureCard:
    grade, partial = _GRADES.get(claim.grade, Grade.UNKNOWN), claim.count < claim.seeds
    text = f"{claim.count} of {claim.seeds} seeds train; {claim.grade}"
    return CureCard(claim.levels, grade, partial, text, claim.cells, codes(claim.levels, failing))


def _certainty(causes: list[ClaimRecord]) -> Certainty:
    grades = {claim.grade for claim in causes}
    if grades == {ClaimGrade.PROVEN}:
        return Certainty(Grade.PROVEN, "by a search with runs that differ in these levels alone")
    if ClaimGrade.SEEN in grades:
        return Certainty(Grade.LIKELY, "it could still be chance")
    return Certainty(Grade.UNKNOWN, "the search left it undecided")
