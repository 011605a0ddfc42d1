"""fully_shard (FSDP2) on two gloo ranks: each holds half of every parameter, and replays the whole model."""

from pathlib import Path
from typing import Any

import pytest
from two_ranks import run

from nangrid.records.autopsy import Autopsy, read_autopsy

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    return run("sharded_loops.py", folder)


def merged(folder: Path, found: Found, name: str) -> Autopsy:
    autopsy = read_autopsy(folder / name)
    assert autopsy is not None and autopsy.reproduced and autopsy.rank == 1
    message = f"{autopsy.clock} went non-finite at step {autopsy.step}\n"
    assert all(noted[name]["message"].startswith(message) for noted in found), "each rank has raised"
    return autopsy


def test_healthy_run_is_unchanged(found: Found) -> None:
    assert [noted["healthy"] for noted in found] == [True, True]


def test_forward_of_one_rank(folder: Path, found: Found) -> None:
    autopsy = merged(folder, found, "zero_input")
    assert (autopsy.step, autopsy.micro_batch, autopsy.op) == (1, 1, "aten.log.default")
    assert autopsy.by_communication == {"0": autopsy.parameters}


@pytest.mark.parametrize("name", ["ones", "half"])
def test_gradient_of_one_rank(folder: Path, found: Found, name: str) -> None:
    autopsy = merged(folder, found, name)
    assert (autopsy.phase, autopsy.op, autopsy.mechanism) == ("backward", "aten.div.Tensor", "derivative-at-pole")


def test_batch_without_labels_on_one_rank(folder: Path, found: Found) -> None:
    autopsy = merged(folder, found, "without_labels")
    assert (autopsy.clock, autopsy.mechanism, autopsy.by_communication) == ("loss", "empty-labels", {})


def test_update_of_the_shards_of_one_rank(folder: Path, found: Found) -> None:
    autopsy = merged(folder, found, "weight_decay")
    assert (autopsy.clock, autopsy.phase, autopsy.op) == ("parameter", "optimizer", "aten.mul_.Tensor")
    healthy = read_autopsy(folder / "weight_decay" / "rank0")
    assert healthy is not None and not healthy.op
