"""What becomes of a cell when one of its ranks fails: it ends soon, says which rank it was, and leaves no process."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from failing_ranks import COMPUTES, HANGS, KILLED, NEVER_COMES, RAISES, REFUSES

from nangrid.cell.config import factors
from nangrid.cell.identity import hash_science
from nangrid.cell.levels import as_config
from nangrid.commands import compose
from nangrid.grid import worker
from nangrid.grid.collect import GridOutcome
from nangrid.grid.local import LocalExecutor
from nangrid.grid.plan import CellPlan
from nangrid.grid.process import start, stop
from nangrid.grid.request import write_request
from nangrid.records.grid import GridDirectory

ENDS_WITHIN = 120.0
"""Seconds on a machine that is busy with other tests; a rank that nobody watches would be waited for half an hour."""


@pytest.fixture(autouse=True)
def fake_cells(monkeypatch: pytest.MonkeyPatch, heeded_signals: None) -> None:
    monkeypatch.setattr(worker, "CELL_MODULE", "failing_ranks")


def plan(out: Path, seed: int) -> CellPlan:
    config = as_config(compose.composed(["model=tiny", "processes=2", f"out={out}", f"seed={seed}"]))
    return CellPlan(config, [f"seed={seed}"], hash_science(factors(config)))


def rank_one(out: Path, seed: int) -> int:
    return int((out / f"rank_one_of_{seed}").read_text())


def test_a_rank_that_fails_ends_the_cell_and_is_named(tmp_path: Path) -> None:
    seeds = (RAISES, NEVER_COMES, COMPUTES, REFUSES, KILLED)
    plans = {seed: plan(tmp_path, seed) for seed in seeds}
    outcome = LocalExecutor(2, ENDS_WITHIN).run(list(plans.values()), GridDirectory.open(tmp_path))
    assert told(outcome, plans[RAISES]) == "rank 1 raised ValueError: index 7 is out of range"
    gone = "the process of rank 1 ended with exit code 9 and left no record"
    assert told(outcome, plans[NEVER_COMES]) == told(outcome, plans[COMPUTES]) == gone
    assert outcome.refusals == {plans[REFUSES].cell_id: "data.length=9 is too long: type data.length=8."}
    assert outcome.stopped == {plans[KILLED].cell_id: "the process of rank 1 was killed by SIGKILL"}
    assert not any(psutil.pid_exists(rank_one(tmp_path, seed)) for seed in seeds)


def told(outcome: GridOutcome, plan: CellPlan) -> str:
    error = outcome.records[plan.cell_id].error
    assert error is not None
    return error.message


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_rank_outlives_its_cell(number: signal.Signals, tmp_path: Path) -> None:
    hanging = plan(tmp_path, HANGS)
    write_request(hanging, GridDirectory.open(tmp_path).grid_id)
    cell = start(hanging, "grid-00000000")
    progress = hanging.directory() / "progress.json"
    eventually(lambda: progress.exists() and '"step": 0' in progress.read_text())
    assert psutil.pid_exists(rank_one(tmp_path, HANGS))
    if number == signal.SIGKILL:
        os.kill(cell.process.pid or 0, number)
    else:
        stop([cell])
    eventually(lambda: not psutil.pid_exists(rank_one(tmp_path, HANGS)))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + ENDS_WITHIN
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
