"""DistributedDataParallel on two gloo ranks: both leave the loop together, and one autopsy names the rank."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from two_ranks import HERE, Found, found_by, gone

from nangrid.records.autopsy import Autopsy, read_autopsy

found = found_by("ddp_loops.py", ended=(0, -9))


def autopsies(found: Found, name: str) -> tuple[Autopsy, Autopsy, Autopsy]:
    """The merged autopsy, and those of both ranks."""
    healthy, failing = (read_autopsy(found.folder / name / rank) for rank in ("rank0", "rank1"))
    assert healthy is not None and failing is not None
    return found.merged(name), healthy, failing


def located(autopsy: Autopsy) -> tuple[Any, ...]:
    return autopsy.rank, autopsy.step, autopsy.phase, autopsy.op, autopsy.reproduced


def test_healthy_run_is_unchanged(found: Found) -> None:
    assert [noted["healthy"] for noted in found.noted] == [True, True]


def test_batch_without_labels_on_one_rank(found: Found) -> None:
    merged, healthy, failing = autopsies(found, "plain_without_labels")
    assert located(merged) == (1, 3, "forward", "aten.nll_loss_forward.default", True)
    assert merged.mechanism == "empty-labels" and merged.clock == "loss"
    assert healthy.reproduced and not healthy.op and not merged.by_communication, "its gradients are zero"
    assert failing.op == merged.op and (found.folder / "plain_without_labels/rank1/operation.py").exists()


def test_second_micro_batch_of_a_window_without_sync(found: Found) -> None:
    merged, healthy, failing = autopsies(found, "accumulating_zero_input")
    assert located(merged) == (1, 1, "forward", "aten.log.default", True)
    assert merged.micro_batch == 1 and merged.output is not None and merged.output.first_index == [1, 2]
    assert merged.by_communication == healthy.by_communication == {"0": failing.parameters}


@pytest.mark.parametrize("name", ["plain_ones", "closure", "two_optimizers_ones", "scaled_ones"])
def test_gradient_of_one_rank(found: Found, name: str) -> None:
    merged, healthy, failing = autopsies(found, name)
    assert located(merged) == (1, 3, "backward", "aten.div.Tensor", True)
    assert merged.clock == "gradient" and set(healthy.by_communication["0"]) == set(failing.parameters)


def test_update_of_all_ranks(found: Found) -> None:
    merged, *of_ranks = autopsies(found, "plain_weight_decay")
    assert located(merged) == (0, 0, "optimizer", "aten.mul_.Tensor", True)
    assert "rank 1 failed by itself too: aten.mul_.Tensor" in " ".join(merged.evidence)
    assert all(autopsy.reproduced for autopsy in of_ranks) and not merged.by_communication


def test_gradients_that_overflow_when_they_are_exchanged(found: Found) -> None:
    merged, *of_ranks = autopsies(found, "plain_half_the_bits")
    assert located(merged) == (None, 0, "backward", "all-reduce", True)
    assert set(merged.by_communication) == {"0", "1"} and not any(autopsy.op for autopsy in of_ranks)


def test_rank_that_is_killed_while_it_looks_for_the_failure(found: Found) -> None:
    assert (
        found.noted[0]["killed"]["message"].startswith("loss went non-finite at step 0")
        and "killed" not in found.noted[1]
    )
    merged = read_autopsy(found.folder / "killed")
    assert merged is not None and merged.rank == 0 and "rank 1 gave no answer" in merged.evidence


def test_kill_of_one_rank_leaves_no_process(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(HERE / "dying.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "Signal 9 (SIGKILL)" in done.stderr
    assert all(gone(int((tmp_path / f"pid{rank}").read_text()), 10) for rank in "01")
    assert not (tmp_path / "autopsy").exists()
