"""transformers' Trainer, Lightning and Accelerate on two gloo ranks: no rank goes on without the other."""

from two_ranks import Found, found_by

from nangrid.records.autopsy import Autopsy

found = found_by("library_loops.py")


def failing(found: Found, name: str, raises: bool = False) -> Autopsy:
    autopsy = found.merged(name, raises)
    assert autopsy.reproduced and autopsy.rank == 1
    return autopsy


def test_healthy_trainer_is_unchanged(found: Found) -> None:
    assert [noted["healthy"] for noted in found.noted] == [True, True]


def test_trainer_stops_both_ranks_at_a_loss(found: Found) -> None:
    autopsy = failing(found, "labels")
    assert [noted["labels"]["steps"] for noted in found.noted] == [3, 3], "the faulty sample is in step 2"
    assert [noted["labels"]["clocks"]["loss"] for noted in found.noted] == [2, 2]
    assert (autopsy.step, autopsy.mechanism, autopsy.by_communication) == (2, "empty-labels", {})


def test_trainer_goes_on_to_the_loss_on_both_ranks(found: Found) -> None:
    autopsy = failing(found, "root")
    assert [noted["root"]["clocks"] for noted in found.noted] == [
        {"loss": 2, "gradient": 1, "parameter": 1, "optimizer_state": 1, "eval_loss": None}
    ] * 2
    assert [noted["root"]["steps"] for noted in found.noted] == [3, 3]
    assert (autopsy.step, autopsy.phase, autopsy.mechanism) == (1, "backward", "derivative-at-pole")
    assert set(autopsy.by_communication["0"]) == set(autopsy.parameters)


def test_evaluation_of_one_rank(found: Found) -> None:
    autopsy = failing(found, "evaluation")
    assert [noted["evaluation"]["clocks"]["eval_loss"] for noted in found.noted] == [1, 1]
    assert (autopsy.step, autopsy.clock, autopsy.mechanism) == (1, "eval_loss", "empty-labels")


def test_accelerate_with_accumulation(found: Found) -> None:
    autopsy = failing(found, "accelerate/autopsy", raises=True)
    assert (autopsy.step, autopsy.clock, autopsy.op, autopsy.micro_batch) == (0, "loss", "aten.div.Tensor", 1)
    assert autopsy.source.startswith("accelerate_loop.py:")


def test_lightning_with_ddp(found: Found) -> None:
    autopsy = failing(found, "lightning", raises=True)
    assert (autopsy.step, autopsy.phase, autopsy.mechanism) == (5, "backward", "derivative-at-pole")
