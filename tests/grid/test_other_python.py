import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from environments import make_environment
from fake_cell import FINITE, HANGS, RAISES, REFUSES, SEGFAULTS, starts_file

from nangrid.grid.collect import GridOutcome
from nangrid.grid.local import LocalExecutor
from nangrid.grid.plan import CellPlan
from nangrid.grid.process import start, stop
from nangrid.grid.request import write_request
from nangrid.records.cell import read_record
from nangrid.records.grid import GridDirectory

MakePlan = Callable[..., CellPlan]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_environment(tmp_path_factory.mktemp("other"), visible=(str(Path(__file__).parent),))


def run(plans: list[CellPlan]) -> GridOutcome:
    return LocalExecutor(2).run(plans, GridDirectory.open(plans[0].config.out))


def test_a_cell_ends_in_another_python_as_it_would_in_this_one(make_plan: MakePlan, python: str) -> None:
    plans = [make_plan(seed, python=python) for seed in (FINITE, RAISES, SEGFAULTS, REFUSES)]
    finite, raises, segfaults, refuses = plans
    outcome = run(plans)
    assert outcome.records[finite.cell_id] == read_record(finite.directory())
    assert outcome.records[finite.cell_id].status == "finite"
    assert outcome.records[finite.cell_id].factors["python"] == python
    errors = [outcome.records[plan.cell_id].error for plan in (raises, segfaults)]
    messages = [error.message if error else "" for error in errors]
    assert messages[0] == "matrices do not fit" and "SIGSEGV" in messages[1]
    assert "vocab.size=9999" in outcome.refusals[refuses.cell_id]


def test_no_cell_outlives_its_worker_however_that_ends(make_plan: MakePlan, python: str) -> None:
    plan = make_plan(HANGS, python=python)
    for end in (stop, lambda workers: workers[0].process.kill()):
        write_request(plan, "grid-00000000")
        worker = start(plan, "grid-00000000")
        pids = starts_file(plan.directory())
        eventually(lambda pids=pids: pids.exists() and pids.read_text().endswith("\n"))
        child = int(pids.read_text())
        pids.unlink()
        end([worker])
        eventually(lambda child=child: not psutil.pid_exists(child))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_python_without_the_packages_is_refused(make_plan: MakePlan, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    plan = make_plan(FINITE, python=str(tmp_path / "bare" / "bin" / "python"))
    assert "install nangrid's extra grid in it" in run([plan]).refusals[plan.cell_id]
