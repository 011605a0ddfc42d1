"""transformers' Trainer and Accelerate with DeepSpeed's ZeRO and with fully_shard, on two gloo ranks."""

import pytest
from two_ranks import Found, found_by

from nangrid.records.autopsy import Autopsy

zero = found_by("zero_libraries.py", apart=True)
sharded = found_by("sharded_libraries.py")


@pytest.fixture(params=["zero", "sharded"])
def found(request: pytest.FixtureRequest) -> Found:
    ranks: Found = request.getfixturevalue(request.param)
    return ranks


def failing(found: Found, name: str, raises: bool = False) -> Autopsy:
    autopsy = found.merged(name, raises)
    assert autopsy.reproduced and autopsy.rank == 1
    return autopsy


def test_loop_of_accelerate(found: Found) -> None:
    autopsy = failing(found, "accelerate", raises=True)
    assert (autopsy.step, autopsy.clock, autopsy.micro_batch, autopsy.op) == (1, "loss", 1, "aten.div.Tensor")


def test_trainer_is_unchanged(found: Found) -> None:
    assert [noted["healthy"] for noted in found.noted] == [True, True]


def test_trainer_stops_both_ranks_at_a_loss(found: Found) -> None:
    autopsy = failing(found, "labels")
    assert [noted["labels"]["steps"] for noted in found.noted] == [3, 3], "the faulty sample is in step 2"
    assert (autopsy.step, autopsy.clock, autopsy.mechanism) == (2, "loss", "empty-labels")


def test_gradient_of_a_trainer(found: Found) -> None:
    autopsy = failing(found, "root")
    assert (autopsy.step, autopsy.clock, autopsy.mechanism) == (1, "gradient", "derivative-at-pole")


def test_evaluation_of_one_rank(zero: Found) -> None:
    autopsy = failing(zero, "evaluation")
    assert (autopsy.step, autopsy.clock, autopsy.mechanism) == (1, "eval_loss", "empty-labels")


def test_evaluation_of_shards_is_not_replayed(sharded: Found) -> None:
    autopsy = sharded.merged("evaluation", raises=False)
    assert (autopsy.step, autopsy.clock, autopsy.rank, autopsy.reproduced) == (1, "eval_loss", 1, False)
    assert [noted["evaluation"]["steps"] for noted in sharded.noted] == [5, 5], "they stop together"
