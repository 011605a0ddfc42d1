"""DeepSpeed's ZeRO 1 and 2 on two gloo ranks: each holds a part of the flat parameters, and replays the module."""

import pytest
from two_ranks import Found, found_by

from nangrid.records.autopsy import Autopsy, read_autopsy

found = found_by("zero_loops.py", apart=True)


def failing(found: Found, name: str) -> Autopsy:
    autopsy = found.merged(name)
    assert autopsy.reproduced and autopsy.rank == 1
    return autopsy


@pytest.mark.parametrize("stage", [1, 2])
def test_healthy_run_is_unchanged(found: Found, stage: int) -> None:
    assert [noted[f"healthy{stage}"] for noted in found.noted] == [True, True]


def test_search_for_the_loss_scale_is_no_failure(found: Found) -> None:
    assert [noted["fp16_searching"] for noted in found.noted] == [True, True]


@pytest.mark.parametrize("name", ["zero_input", "half_zero_input", "light_zero_input", "part_zero_input"])
def test_forward_of_one_rank(found: Found, name: str) -> None:
    autopsy = failing(found, name)
    assert (autopsy.step, autopsy.micro_batch, autopsy.op) == (1, 1, "aten.log.default")
    assert autopsy.by_communication


@pytest.mark.parametrize("name", ["ones", "half_ones", "fp16_ones", "light_fp16_ones"])
def test_gradient_of_one_rank(found: Found, name: str) -> None:
    autopsy = failing(found, name)
    assert (autopsy.phase, autopsy.op, autopsy.mechanism) == ("backward", "aten.div.Tensor", "derivative-at-pole")


@pytest.mark.parametrize("name", ["without_labels", "half_without_labels"])
def test_batch_without_labels_on_one_rank(found: Found, name: str) -> None:
    autopsy = failing(found, name)
    assert (autopsy.clock, autopsy.mechanism, autopsy.by_communication) == ("loss", "empty-labels", {})


@pytest.mark.parametrize("name", ["weight_decay", "half_weight_decay"])
def test_update_of_the_fragments_of_one_rank(found: Found, name: str) -> None:
    autopsy = failing(found, name)
    assert (autopsy.clock, autopsy.phase, autopsy.op) == ("parameter", "optimizer", "aten.mul_.Tensor")
    healthy = read_autopsy(found.folder / name / "rank0")
    assert healthy is not None and not healthy.op


def test_rank_of_an_update_that_is_not_replayed(found: Found) -> None:
    autopsy = found.merged("light")
    assert (autopsy.rank, autopsy.reproduced, autopsy.parameters) == (1, False, ["0.bias", "2.weight"])


def test_example_of_the_guide(found: Found) -> None:
    autopsy = found.merged("example/autopsy")
    assert autopsy.reproduced and (autopsy.clock, autopsy.op) == ("loss", "aten.log.default")
    assert autopsy.source.startswith("deepspeed_loop.py:")


def test_other_engines_are_refused_by_name(found: Found) -> None:
    names = ["DeepSpeed without ZeRO", "ZeRO 3 of DeepSpeed", "round_robin_gradients of DeepSpeed"]
    names.append("a constant loss_scale of DeepSpeed")
    for noted in found.noted:
        for name, message in zip(names, noted["refused"], strict=True):
            assert message.startswith(f"Watch does not support {name}: use DistributedDataParallel,")
