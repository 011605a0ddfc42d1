"""fully_shard (FSDP2) on two gloo ranks: each holds half of every parameter, and replays the whole model."""

import pytest
from two_ranks import Found, found_by

from nangrid.records.autopsy import Autopsy, read_autopsy

found = found_by("sharded_loops.py")


def failing(found: Found, name: str) -> Autopsy:
    autopsy = found.merged(name)
    assert autopsy.reproduced and autopsy.rank == 1
    return autopsy


def test_healthy_run_is_unchanged(found: Found) -> None:
    assert [noted["healthy"] for noted in found.noted] == [True, True]


def test_forward_of_one_rank(found: Found) -> None:
    autopsy = failing(found, "zero_input")
    assert (autopsy.step, autopsy.micro_batch, autopsy.op) == (1, 1, "aten.log.default")
    assert autopsy.by_communication == {"0": autopsy.parameters}


@pytest.mark.parametrize("name", ["ones", "half", "scaled"])
def test_gradient_of_one_rank(found: Found, name: str) -> None:
    autopsy = failing(found, name)
    assert (autopsy.phase, autopsy.op, autopsy.mechanism) == ("backward", "aten.div.Tensor", "derivative-at-pole")


def test_batch_without_labels_on_one_rank(found: Found) -> None:
    autopsy = failing(found, "without_labels")
    assert (autopsy.clock, autopsy.mechanism, autopsy.by_communication) == ("loss", "empty-labels", {})


def test_update_of_the_shards_of_one_rank(found: Found) -> None:
    autopsy = failing(found, "weight_decay")
    assert (autopsy.clock, autopsy.phase, autopsy.op) == ("parameter", "optimizer", "aten.mul_.Tensor")
    healthy = read_autopsy(found.folder / "weight_decay" / "rank0")
    assert healthy is not None and not healthy.op
