"""A level is told in words and as code, and a cure that trains worse says by how much."""

from collections.abc import Callable
from pathlib import Path

import pytest
from autopsies import make_autopsy

from nangrid.analysis.causes import Grid
from nangrid.analysis.verdict import event_cards
from nangrid.analysis.verdict.meanings import MEANINGS, codes, meaning
from nangrid.records.cell import CellRecord

CONF = Path(__file__).parents[2] / "conf"
MakeRecord = Callable[..., CellRecord]


@pytest.mark.parametrize("factor", ["dtype", "init", "optim", "upcast"])
def test_every_level_of_the_suspected_factors_has_words(factor: str) -> None:
    levels = {f"{factor}={path.stem}" for path in (CONF / factor).glob("*.yaml")}
    assert levels and levels <= MEANINGS.keys()


def test_code_is_given_only_if_it_sets_every_level(make_record: MakeRecord) -> None:
    record = make_record()
    assert codes(["dtype=bf16", "optim=sgd"], record) == [
        "from_pretrained(..., dtype=torch.bfloat16)",
        'TrainingArguments(optim="sgd")',
    ]
    assert codes(["dtype=bf16", "init=zero"], record) == [] and codes(["data.bos=False"], record) == []


def test_the_levels_of_a_script_are_its_authors(make_record: MakeRecord) -> None:
    record = make_record(factors={"dtype": "bf16", "script": "train.py"})
    assert codes(["dtype=bf16"], record) == [] and meaning("dtype", "bf16", record) == ""


def test_a_level_with_a_changed_field_is_not_told_as_the_level_of_conf(make_record: MakeRecord) -> None:
    assert meaning("dtype", "bf16", make_record()).startswith("weights, trained parameters and computation in bfloat16")
    assert meaning("dtype", "bf16", make_record(overrides=["dtype=bf16", "dtype.adapter=fp32"])) == ""


def test_a_cure_that_trains_worse_says_to_which_loss(make_record: MakeRecord) -> None:
    rows = {
        "a": ("bf16", "mean", None),
        "b": ("bf16", "zero", None),
        "c": ("fp16", "mean", 0),
        "d": ("fp16", "zero", 0),
    }
    records, autopsies, losses = [], {}, {}
    for cell_id, (dtype, init, onset) in rows.items():
        rung = None if onset is None else {"loss": onset}
        record = make_record(rung, cell_id=cell_id, factors={"dtype": dtype, "init": init, "seed": 0})
        records.append(record)
        losses[cell_id] = [4.0 if init == "mean" else 4.5] * record.steps_done
        autopsies |= {} if onset is None else {cell_id: make_autopsy()}
    (card,) = event_cards(Grid(records, autopsies, losses), None)
    worse = "1 of them (b) trains worse than the reference (loss 4.5 against 4)"
    assert card.cures[0].text == f"with it, both failing runs stay finite for 16 steps; {worse}"
    assert card.cures[0].code == ["from_pretrained(..., dtype=torch.bfloat16)"]
