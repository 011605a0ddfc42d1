"""transformers' Trainer and Accelerate on two gloo ranks: no rank goes on without the other."""

from pathlib import Path
from typing import Any

import pytest
from two_ranks import run

from nangrid.records.autopsy import Autopsy, read_autopsy

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("libraries")


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return run("library_loops.py", folder)


def merged(folder: Path, name: str) -> Autopsy:
    autopsy = read_autopsy(folder / name)
    assert autopsy is not None and autopsy.reproduced and autopsy.rank == 1
    return autopsy


def test_healthy_trainer_is_unchanged(found: Found) -> None:
    assert [noted["healthy"] for noted in found] == [True, True]


def test_trainer_stops_both_ranks_at_a_loss(folder: Path, found: Found) -> None:
    autopsy = merged(folder, "labels")
    assert [noted["labels"]["steps"] for noted in found] == [3, 3], "the faulty sample is in step 2"
    assert [noted["labels"]["clocks"]["loss"] for noted in found] == [2, 2]
    assert (autopsy.step, autopsy.mechanism, autopsy.by_communication) == (2, "empty-labels", {})


def test_trainer_goes_on_to_the_loss_on_both_ranks(folder: Path, found: Found) -> None:
    autopsy = merged(folder, "root")
    assert [noted["root"]["clocks"] for noted in found] == [
        {"loss": 2, "gradient": 1, "parameter": 1, "optimizer_state": 1, "eval_loss": None}
    ] * 2
    assert [noted["root"]["steps"] for noted in found] == [3, 3]
    assert (autopsy.step, autopsy.phase, autopsy.mechanism) == (1, "backward", "derivative-at-pole")
    assert set(autopsy.by_communication["0"]) == set(autopsy.parameters)


def test_evaluation_of_one_rank(folder: Path, found: Found) -> None:
    autopsy = merged(folder, "evaluation")
    assert [noted["evaluation"]["clocks"]["eval_loss"] for noted in found] == [1, 1]
    assert (autopsy.step, autopsy.clock, autopsy.mechanism) == (1, "eval_loss", "empty-labels")


def test_accelerate_with_accumulation(folder: Path, found: Found) -> None:
    autopsy = merged(folder, "accelerate/autopsy")
    assert all("loss went non-finite at step 0" in noted["accelerate"]["message"] for noted in found)
    assert (autopsy.op, autopsy.micro_batch) == ("aten.div.Tensor", 1)
    assert autopsy.source.startswith("accelerate_loop.py:")
