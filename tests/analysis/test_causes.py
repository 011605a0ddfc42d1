"""Causes and cures from a finished grid: the default grid's three stories, and what a grid cannot tell."""

import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import pytest

from nangrid.analysis.causes import Event, EventVerdict, Grid, format_levels
from nangrid.analysis.verdict import event_cards, event_sentence, verdict
from nangrid.records.autopsy import Autopsy, Suggestion
from nangrid.records.cell import CellError, CellRecord, Trains

MakeRecord = Callable[..., CellRecord]

OVERFLOW = Event("fp16-activation-overflow", "forward", "overflow")
ROWS = Event("fp16-gradient-overflow", "backward", "overflow")
EPS = Event("adam-eps-underflow", "optimizer", "invalid")

FACTORS = {
    "dtype": ("bf16", "fp16", "silent_fp16"),
    "init": ("zero", "mean"),
    "optim": ("paged_adamw_8bit", "adamw_torch"),
}


def happened(dtype: str, init: str, optim: str) -> Event | None:
    if dtype == "fp16":
        return OVERFLOW
    if dtype == "silent_fp16" and init == "zero":
        return ROWS
    return EPS if dtype == "silent_fp16" and optim == "adamw_torch" else None


def loss(dtype: str, init: str, optim: str) -> float:
    return 3.0 + 0.5 * (init == "zero") + 0.01 * (dtype == "silent_fp16") + 0.02 * (optim == "adamw_torch")


@pytest.fixture
def make_grid(make_record: MakeRecord) -> Callable[..., Grid]:
    def make(
        levels: Iterable[tuple[str, ...]] = tuple(product(*FACTORS.values())),
        seeds: int = 1,
        event_of: Callable[..., Event | None] = happened,
        reproduced: bool = True,
        suggested: Sequence[str] = ("dtype=bf16",),
        **changes: Any,
    ) -> Grid:
        records, autopsies = [], {}
        for number, (combination, seed) in enumerate(product(levels, range(seeds))):
            event = event_of(*combination) if seeds == 1 else event_of(*combination, seed)
            factors = dict(zip(FACTORS, combination, strict=True)) | {"seed": seed}
            cell_id = f"{number:012x}"
            trains = Trains(None, [], 1e-3, 4.0, loss(*combination))
            rung = {"loss": 0} if event else None
            records.append(make_record(rung, cell_id=cell_id, factors=factors, trains=trains, **changes))
            if event:
                autopsies[cell_id] = autopsy(event, reproduced, suggested)
        return Grid(records, autopsies)

    return make


def autopsy(event: Event, reproduced: bool = True, suggested: Sequence[str] = ()) -> Autopsy:
    nothing: dict[str, Any] = dict.fromkeys(Autopsy.__dataclass_fields__)
    known = {"mechanism": event.mechanism, "phase": event.phase, "kind": event.kind, "reproduced": reproduced}
    return Autopsy(**nothing | known | {"suggestions": [Suggestion("", override) for override in suggested]})


def told(finding: EventVerdict) -> tuple[list[str], set[str]]:
    cures = {format_levels(cure.changes) for found in finding.cures.values() for cure in found}
    return [format_levels(cause.levels) for cause in finding.causes], cures


def test_the_three_stories_of_the_default_grid(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid()
    reference = grid.reference
    assert reference and format_levels(reference.levels) == "dtype=bf16 init=mean optim=paged_adamw_8bit"
    findings = {finding.event: told(finding) for finding in grid.event_verdicts(reference)}
    assert findings[OVERFLOW][0] == ["dtype=fp16"]
    assert findings[ROWS][0] == ["dtype=silent_fp16 init=zero"]
    assert findings[EPS] == (["dtype=silent_fp16 optim=adamw_torch"], {"dtype=bf16", "optim=paged_adamw_8bit"})
    # zero rows train under bf16, but to a loss that is worse than the reference's: no cure
    assert findings[ROWS][1] == {"init=mean", "init=mean optim=paged_adamw_8bit", "dtype=bf16 init=mean"}


def test_a_larger_cure_is_not_told_where_the_smaller_one_was_not_tried(make_grid: Callable[..., Grid]) -> None:
    """What a search leaves: the cells that it asked for, not every combination."""
    asked = [("fp16", "zero", "adamw_torch"), ("fp16", "mean", "adamw_torch"), ("fp16", "zero", "paged_adamw_8bit")]
    fine = [("bf16", "mean", "adamw_torch"), ("bf16", "mean", "paged_adamw_8bit")]
    grid = make_grid([*asked, *fine])
    reference = grid.reference
    assert reference
    (finding,) = grid.event_verdicts(reference)
    assert told(finding)[1] == {"dtype=bf16"}


def test_another_event_that_comes_first_decides_nothing(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid()
    reference = grid.reference
    assert reference
    (rows,) = (f for f in grid.event_verdicts(reference) if f.event == ROWS)
    assert rows.causes[0].open == ()
    thin = make_grid([c for c in product(*FACTORS.values()) if c[:2] != ("silent_fp16", "mean")])
    reference = thin.reference
    assert reference
    (rows,) = (f for f in thin.event_verdicts(reference) if f.event == ROWS)
    assert [format_levels(levels) for levels in rows.causes[0].open] == ["dtype=silent_fp16"], (
        "the grid lacks that cell"
    )
    assert any("undecided: whether dtype=silent_fp16 alone" in line for line in verdict(thin))


def test_two_causes_of_one_event_and_what_both_need(make_grid: Callable[..., Grid]) -> None:
    def either(dtype: str, init: str, optim: str) -> Event | None:
        return ROWS if dtype == "fp16" and (init == "zero" or optim == "adamw_torch") else None

    grid = make_grid([c for c in product(*FACTORS.values()) if c[0] != "silent_fp16"], event_of=either)
    reference = grid.reference
    assert reference
    (finding,) = grid.event_verdicts(reference)
    assert told(finding)[0] == ["dtype=fp16 init=zero", "dtype=fp16 optim=adamw_torch"]
    assert format_levels(finding.necessary) == "dtype=fp16"


def test_an_event_of_one_seed_in_three_is_told_as_such(make_grid: Callable[..., Grid]) -> None:
    def lottery(dtype: str, init: str, optim: str, seed: int) -> Event | None:
        return OVERFLOW if dtype == "fp16" and seed == 2 else None

    lines = verdict(make_grid(seeds=3, event_of=lottery))
    assert any("could still be chance" in line and "dtype=fp16 (1 of 3 seeds" in line for line in lines)
    assert not any("sufficient:" in line or "cure:" in line for line in lines)


REMEDIES = {"suggested": ["dtype=bf16", "init=mean"]}


@pytest.fixture
def one_run_fails(make_grid: Callable[..., Grid]) -> Callable[..., Grid]:
    """A grid in which one combination has the two levels of the cause; of the three factors, the autopsy names some."""

    def both(dtype: str, init: str, optim: str, seed: int = 0) -> Event | None:
        return ROWS if (dtype, init) == ("fp16", "zero") else None

    levels = [c for c in product(*FACTORS.values()) if c[0] != "silent_fp16" and c != ("fp16", "zero", "adamw_torch")]
    return functools.partial(make_grid, levels, event_of=both)


@pytest.mark.parametrize(
    "no_evidence",
    [
        {"suggested": ["dtype=bf16"]},
        {"suggested": [*REMEDIES["suggested"], "optim=adamw_torch"]},
        REMEDIES | {"reproduced": False},
    ],
    ids=["a part of the cause", "every factor of the grid", "another failure"],
)
def test_one_run_that_its_autopsy_does_not_explain_is_no_proof(
    no_evidence: Any, one_run_fails: Callable[..., Grid]
) -> None:
    grid = one_run_fails(**no_evidence)
    (card,) = event_cards(grid, None)
    lines = [line for line in verdict(grid) if "sufficient:" in line or "cure:" in line]
    assert len(lines) > 1 and all(line.endswith(", one run shows it; 1 more seed would tell") for line in lines)
    grades = [card.certainty.grade, *(cause.grade for cause in card.causes), *(cure.grade for cure in card.cures)]
    assert len(grades) > 2 and set(grades) == {"likely"}


@pytest.mark.parametrize("evidence", [REMEDIES, {"seeds": 2, "reproduced": False}], ids=["autopsy", "another seed"])
def test_an_autopsy_that_explains_each_level_or_another_seed_proves_it(
    evidence: Any, one_run_fails: Callable[..., Grid]
) -> None:
    grid = one_run_fails(**evidence)
    assert not any("one run shows it" in line for line in verdict(grid))
    (card,) = event_cards(grid, None)
    assert (card.certainty.grade, card.causes[0].grade) == ("proven", "proven")


def test_the_card_of_such_an_event_claims_no_more(make_grid: Callable[..., Grid]) -> None:
    def lottery(dtype: str, init: str, optim: str, seed: int) -> Event | None:
        return OVERFLOW if dtype == "fp16" and seed == 2 else None

    (card,) = event_cards(make_grid(seeds=3, event_of=lottery), None)
    assert (card.certainty.grade, card.causes[0].grade, card.cures) == ("likely", "likely", [])
    sentence = event_sentence(card)
    assert "dtype=fp16 may cause it (this could still be chance)" in sentence and sentence.endswith(
        "and no run shows a cure."
    )


def test_cards_name_the_smallest_cure_first_and_the_runs_that_prove_it(make_grid: Callable[..., Grid]) -> None:
    cards = {card.mechanism: card for card in event_cards(make_grid(), None)}
    rows = cards[ROWS.mechanism]
    assert rows.causes[0].levels == ["dtype=silent_fp16", "init=zero"] and len(rows.causes[0].cells) == 3
    assert rows.cures[0].levels == ["dtype=bf16", "init=mean"] and not rows.cures[0].partial
    assert {cure.partial for cure in rows.cures if cure.levels == ["init=mean"]} == {True}
    assert [futile.factor for futile in rows.no_help] == ["optim"]
    assert "dtype=silent_fp16 with init=zero causes it, and dtype=bf16 with init=mean cures it." in event_sentence(rows)


def test_without_a_run_that_trains_a_card_claims_nothing(make_grid: Callable[..., Grid]) -> None:
    (card,) = event_cards(make_grid([("fp16", "zero", "adamw_torch"), ("fp16", "mean", "adamw_torch")]), None)
    assert (card.certainty.grade, card.causes, card.cures) == ("unknown", [], [])
    assert "because no combination of this grid trains, so there is nothing to compare with" in event_sentence(card)


def test_the_rate_of_an_event_leaves_the_other_events_out(make_grid: Callable[..., Grid]) -> None:
    def mixed(dtype: str, init: str, optim: str, seed: int) -> Event | None:
        return (OVERFLOW, ROWS, None)[seed] if dtype == "fp16" else None

    lines = verdict(make_grid(seeds=3, event_of=mixed))
    assert [line.count("1 of 3 seeds") for line in lines if "dtype=fp16 (" in line] == [1, 1]


def test_a_reference_that_was_asked_for_is_called_so(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid()
    (asked,) = (
        c for c in grid.combinations.values() if format_levels(c.levels) == "dtype=bf16 init=mean optim=adamw_torch"
    )
    assert any(line.startswith("reference:") and line.endswith("as requested") for line in verdict(grid, asked))
    assert any(line.endswith("fewest failing neighbours") for line in verdict(grid))


def test_a_change_that_was_tried_and_cures_nothing_is_named(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid()
    reference = grid.reference
    assert reference
    futile = {f.event: {format_levels((g.change,)) for g in f.futile} for f in grid.event_verdicts(reference)}
    assert {"init=mean", "optim=paged_adamw_8bit", "optim=adamw_torch"} <= futile[OVERFLOW]
    assert "init=mean" not in futile[ROWS], "it cures one of the two"
    assert any("does not help: init=mean,zero (2 pairs fail alike: " in line for line in verdict(grid))


def test_the_reference_does_not_hang_on_a_loss_that_is_lower_by_a_hair(make_record: MakeRecord) -> None:
    # torch's AdamW: 0.1 % better here, but one change away (silent_fp16) it fails
    grids = []
    for better in ("adamw_torch", "paged_adamw_8bit"):
        records, autopsies = [], {}
        for number, levels in enumerate(product(*FACTORS.values())):
            event, cell_id = happened(*levels), f"{number:012x}"
            loss = {"zero": 4.7, "mean": 4.28}[levels[1]] - 0.004 * (levels[2] == better)
            factors = dict(zip(FACTORS, levels, strict=True))
            trains = Trains(None, [], 1e-3, 4.0, loss)
            rung = {"loss": 0} if event else None
            records.append(make_record(rung, cell_id=cell_id, factors=factors, trains=trains))
            autopsies |= {cell_id: autopsy(event)} if event else {}
        grids.append(Grid(records, autopsies))
    references = {format_levels(reference.levels) for grid in grids if (reference := grid.reference)}
    assert references == {"dtype=bf16 init=mean optim=paged_adamw_8bit"}


def cells(make_record: MakeRecord, *rows: dict[str, Any]) -> Grid:
    """Each row a cell: its factors, `steps` done, the `onset` of an overflow or none, and its `losses` a step."""
    records, autopsies, losses = [], {}, {}
    for number, row in enumerate(rows):
        onset, steps, course = row.pop("onset", None), row.pop("steps", 16), row.pop("losses", None)
        cell_id = f"{number:012x}"
        rung = None if onset is None else {"loss": onset}
        steps = steps if onset is None else onset + 1
        records.append(make_record(rung, cell_id=cell_id, factors={"seed": 0} | row, steps_done=steps))
        losses[cell_id] = course or [3.0] * steps
        autopsies |= {} if onset is None else {cell_id: autopsy(OVERFLOW)}
    return Grid(records, autopsies, losses)


def test_a_stray_short_cell_makes_no_cure_of_what_diverges(make_record: MakeRecord) -> None:
    diverging = [4 * 1.2**step for step in range(16)]
    grid = cells(
        make_record,
        {"dtype": "bf16", "lr": 2e-4},
        {"dtype": "fp16", "lr": 2e-4, "onset": 1},
        {"dtype": "fp16", "lr": 1.0, "losses": diverging},
        {"dtype": "bf16", "lr": 1.0, "steps": 1},
    )
    assert grid.reference
    (finding,) = grid.event_verdicts(grid.reference)
    assert told(finding)[1] == {"dtype=bf16"}


def test_a_neighbour_that_was_not_watched_to_the_onset_proves_nothing(make_record: MakeRecord) -> None:
    grid = cells(
        make_record,
        {"dtype": "bf16", "init": "mean", "steps": 4},
        {"dtype": "bf16", "init": "zero", "steps": 4},
        {"dtype": "fp16", "init": "mean", "steps": 4},
        {"dtype": "fp16", "init": "zero", "onset": 10},
    )
    assert grid.reference
    (cause,) = grid.event_verdicts(grid.reference)[0].causes
    assert cause.without == () and len(cause.open) == 3


def test_a_seed_that_never_failed_cures_no_other(make_record: MakeRecord) -> None:
    fails = {"dtype": "fp16", "seed": 2, "onset": 0}
    grid = cells(make_record, {"dtype": "bf16", "seed": 0}, dict(fails))
    assert grid.reference
    (finding,) = grid.event_verdicts(grid.reference)
    assert told(finding)[1] == set() and finding.causes[0].without == ()
    with_it = cells(make_record, {"dtype": "bf16", "seed": 2}, {"dtype": "bf16", "seed": 0}, dict(fails))
    assert with_it.reference
    assert told(with_it.event_verdicts(with_it.reference)[0])[1] == {"dtype=bf16"}


def test_one_seed_of_three_is_seen_but_not_told_from_chance(make_record: MakeRecord) -> None:
    fails = [{"dtype": "fp16", "seed": seed} | ({"onset": 0} if seed == 2 else {}) for seed in range(3)]
    grid = cells(make_record, *({"dtype": "bf16", "seed": seed} for seed in range(3)), *fails)
    assert grid.reference
    (finding,) = grid.event_verdicts(grid.reference)
    assert told(finding) == ([], set()) and [format_levels(seen.levels) for seen in finding.seen] == ["dtype=fp16"]


@pytest.mark.parametrize("factor", ["data.bos", "quant"])
def test_losses_of_other_data_or_weights_are_not_compared(factor: str, make_record: MakeRecord) -> None:
    grid = cells(
        make_record,
        {"dtype": "bf16", factor: "a"},
        {"dtype": "bf16", factor: "b", "losses": [9.0] * 16},
        {"dtype": "fp16", factor: "a", "onset": 0},
        {"dtype": "fp16", factor: "b", "onset": 0},
    )
    assert grid.reference
    (finding,) = grid.event_verdicts(grid.reference)
    assert told(finding)[1] == {"dtype=bf16"} and all(len(found) == 1 for found in finding.cures.values())


@pytest.mark.parametrize(
    ("levels", "event_of", "sentence"),
    [
        ([("fp16", "zero", "adamw_torch")], happened, "A single run cannot be compared"),
        (
            [("fp16", "zero", "adamw_torch"), ("fp16", "mean", "adamw_torch")],
            happened,
            "No combination trains with every seed",
        ),
        ([("bf16", "zero", "adamw_torch"), ("bf16", "mean", "adamw_torch")], happened, "there is no verdict"),
    ],
)
def test_what_a_thin_grid_can_say(levels: Any, event_of: Any, sentence: str, make_grid: Callable[..., Grid]) -> None:
    lines = verdict(make_grid(levels, event_of=event_of))
    assert any(sentence in line for line in lines)
    assert not any("sufficient:" in line or "cure:" in line for line in lines)


def test_crashed_cells_prove_nothing(make_grid: Callable[..., Grid]) -> None:
    error = CellError("OutOfMemory", "", "")
    grid = make_grid([("bf16", "zero", "adamw_torch"), ("bf16", "mean", "adamw_torch")], status="error", error=error)
    lines = verdict(grid)
    assert any("crashed or timed out" in line for line in lines) and grid.reference is None


def test_a_cure_seen_for_too_few_steps_says_so(make_record: MakeRecord) -> None:
    grid = cells(make_record, {"dtype": "bf16"}, {"dtype": "fp16", "onset": 5})
    (line,) = (line for line in verdict(grid) if "  cure:" in line)
    assert "finite for 16 steps, too short to be sure: 4x the onset needed" in line


def test_a_cure_counts_the_failing_combinations_that_tried_it(make_record: MakeRecord) -> None:
    grid = cells(
        make_record,
        {"dtype": "bf16", "init": "mean", "optim": "sgd"},
        {"dtype": "fp16", "init": "mean", "optim": "sgd", "onset": 0},
        {"dtype": "fp16", "init": "zero", "optim": "sgd", "onset": 0},
        {"dtype": "fp16", "init": "zero", "optim": "adamw", "onset": 0},
        {"dtype": "bf16", "init": "zero", "optim": "sgd", "losses": [9.0] * 16},
    )
    lines = [line for line in verdict(grid) if line.startswith("  cure: dtype=bf16 (")]
    assert len(lines) == 1 and lines[0].startswith("  cure: dtype=bf16 (2 of 2 tries finite for 16 steps: ")
    assert "; 1 with a worse loss: " in lines[0]


def test_a_card_counts_the_failing_runs_that_the_cure_was_not_tried_on(make_record: MakeRecord) -> None:
    grid = cells(
        make_record,
        {"dtype": "bf16", "init": "mean", "optim": "sgd"},
        {"dtype": "bf16", "init": "zero", "optim": "sgd"},
        {"dtype": "fp16", "init": "mean", "optim": "sgd", "onset": 0},
        {"dtype": "fp16", "init": "zero", "optim": "sgd", "onset": 0},
        {"dtype": "fp16", "init": "zero", "optim": "adamw", "onset": 0},
    )
    (card,) = event_cards(grid, None)
    assert card.causes[0].text == "a run fails this way, but not with dtype=bf16"
    assert card.cures[0].text == "tried on 2 of the 3 failing runs; both stay finite for 16 steps"


def test_a_card_says_how_many_failing_runs_a_cure_leaves(make_record: MakeRecord) -> None:
    grid = cells(
        make_record,
        {"dtype": "bf16", "init": "mean"},
        {"dtype": "bf16", "init": "zero"},
        {"dtype": "silent_fp16", "init": "mean"},
        {"dtype": "silent_fp16", "init": "zero", "onset": 1},
        {"dtype": "fp16", "init": "mean", "onset": 0},
        {"dtype": "fp16", "init": "zero", "onset": 0},
    )
    (card,) = event_cards(grid, None)
    texts = {tuple(cure.levels): cure.text for cure in card.cures}
    assert texts["dtype=bf16",] == "with it, all 3 failing runs stay finite for 16 steps"
    partial = "1 stays finite for 16 steps; 1 fails by fp16-activation-overflow"
    assert texts["dtype=silent_fp16",] == f"tried on 2 of the 3 failing runs; {partial}"
