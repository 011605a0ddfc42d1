import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from fake_cell import (
    EATS_MEMORY,
    EXITS,
    FINITE,
    FULL_DISK,
    HANGS,
    KILLED,
    NONFINITE,
    RAISES,
    REFUSES,
    SEGFAULTS,
    starts_file,
)

from nangrid.grid import exit_reason, local
from nangrid.grid.collect import GridOutcome
from nangrid.grid.local import LocalExecutor
from nangrid.grid.lock import acquire, is_held, release
from nangrid.grid.plan import CellPlan
from nangrid.grid.process import CellProcess, StartError
from nangrid.records.cell import read_record
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory

MakePlan = Callable[..., CellPlan]


def run(plans: list[CellPlan], n_jobs: int = 2, timeout_s: float | None = None) -> GridOutcome:
    return LocalExecutor(n_jobs, timeout_s).run(plans, GridDirectory.open(plans[0].config.out))


def starts(plan: CellPlan) -> list[int]:
    path = starts_file(plan.directory())
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_a_cell_that_raises_or_dies_is_recorded_and_the_others_go_on(make_plan: MakePlan) -> None:
    plans = [make_plan(seed) for seed in (RAISES, EXITS, SEGFAULTS, EATS_MEMORY, FINITE, NONFINITE)]
    records = run(plans).records
    raises, exits, segfaults, eats, finite, nonfinite = (records[plan.cell_id] for plan in plans)
    assert [record.status for record in (raises, exits, segfaults, eats)] == ["error"] * 4
    assert raises.error and (raises.error.type, raises.error.message) == (
        "RuntimeError",
        "matrices do not fit",
    )
    assert "Traceback" in raises.error.log_tail and "said by a grandchild" in raises.error.log_tail
    assert exits.error and "exit code 9" in exits.error.message
    assert segfaults.error and "SIGSEGV" in segfaults.error.message
    assert eats.error and eats.error.type == "OutOfMemory" and eats.peak_rss_bytes > 0
    assert raises.steps_done == segfaults.steps_done == 1
    assert (finite.status, nonfinite.status) == ("finite", "nonfinite")
    assert all(read_record(plan.directory()) == records[plan.cell_id] for plan in plans)


def test_a_cell_stopped_from_outside_says_nothing_of_the_cell_and_runs_again(make_plan: MakePlan) -> None:
    killed, full = make_plan(KILLED), make_plan(FULL_DISK)
    for attempt in (1, 2):
        outcome = run([killed, full])
        assert outcome.records == {}
        assert "SIGKILL" in outcome.stopped[killed.cell_id]
        assert "history.parquet cannot be written (No space left" in outcome.stopped[full.cell_id]
        assert [len(starts(plan)) for plan in (killed, full)] == [attempt, attempt]
    assert "about to die" in (killed.directory() / "attempts" / "0" / "log.txt").read_text()


def test_killed_for_want_of_memory_is_recorded(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = itertools.count(1)
    monkeypatch.setattr(exit_reason, "oom_kills", lambda: next(counts))  # as if the kernel had killed in between
    plan = make_plan(KILLED)
    error = run([plan]).records[plan.cell_id].error
    assert error and error.type == "OutOfMemory" and "about to die" in error.log_tail


@pytest.mark.parametrize("name", ["result.json", "history.parquet"])
def test_a_record_cut_short_is_set_aside_and_the_cell_runs_again(
    name: str, make_plan: MakePlan, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(FINITE)
    first = run([plan]).records[plan.cell_id]
    path = plan.directory() / name
    cut = path.read_bytes()[:-30]
    path.write_bytes(cut)
    assert run([plan]).records[plan.cell_id] == first
    assert (plan.directory() / "attempts" / "0" / name).read_bytes() == cut
    assert str(path) in capsys.readouterr().out
    assert len(starts(plan)) == 2


def test_a_cell_past_its_timeout_is_stopped_and_recorded(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, finite = make_plan(HANGS), make_plan(FINITE)

    def seconds(cell: CellProcess) -> float:
        return time.monotonic() - cell.started if cell.plan == hanging else 0.0  # a loaded machine slows both

    monkeypatch.setattr(CellProcess, "seconds", property(seconds))
    records = run([hanging, finite], n_jobs=1, timeout_s=2.0).records
    assert records[hanging.cell_id].status == "timeout"
    assert records[finite.cell_id].status == "finite"
    assert not is_held(hanging.directory())


def test_cells_whose_processes_cannot_start_stay_unfinished(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise StartError("no process of it can start")

    monkeypatch.setattr(local, "start", failing)
    plans = [make_plan(FINITE), make_plan(NONFINITE)]
    outcome = run(plans, n_jobs=1)
    assert outcome.stopped == {plan.cell_id: "no process of it can start" for plan in plans}
    assert not outcome.records and not any(is_held(plan.directory()) for plan in plans)


def test_too_few_files_are_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (14, 14))
    with pytest.raises(InputError, match=r"Only 14 files may be open \(ulimit -n\)"):
        LocalExecutor().check()


def test_a_cell_that_cannot_be_built_as_asked_is_named_and_leaves_no_record(make_plan: MakePlan) -> None:
    refused, finite = make_plan(REFUSES), make_plan(FINITE)
    outcome = run([refused, finite])
    assert list(outcome.records) == [finite.cell_id]
    assert outcome.refusals[refused.cell_id].startswith("vocab.size=9999")
    assert read_record(refused.directory()) is None


def test_finished_cells_are_not_run_again(make_plan: MakePlan) -> None:
    plans = [make_plan(seed) for seed in (FINITE, NONFINITE, RAISES)]
    first = run(plans).records
    assert run(plans).records == first
    assert [len(starts(plan)) for plan in plans] == [1, 1, 1]


def test_errored_runs_the_crashed_cells_again_and_keeps_their_record(make_plan: MakePlan) -> None:
    run([make_plan(FINITE), make_plan(RAISES)])
    plans = [make_plan(FINITE, resume="errored"), make_plan(RAISES, resume="errored")]
    run(plans)
    assert [len(starts(plan)) for plan in plans] == [1, 2]
    assert (plans[1].directory() / "attempts" / "0" / "result.json").exists()


def test_restart_runs_all_again(make_plan: MakePlan) -> None:
    run([make_plan(FINITE)])
    plan = make_plan(FINITE, resume="restart")
    run([plan])
    assert len(starts(plan)) == 2


def test_a_longer_horizon_reruns_the_finite_cell_only(make_plan: MakePlan) -> None:
    run([make_plan(FINITE), make_plan(NONFINITE)])
    plans = [make_plan(FINITE, horizon=32), make_plan(NONFINITE, horizon=32)]
    records = run(plans).records
    assert [len(starts(plan)) for plan in plans] == [2, 1]
    assert records[plans[0].cell_id].horizon == 32


def test_a_cell_that_another_launcher_runs_is_waited_for(make_plan: MakePlan) -> None:
    plan = make_plan(FINITE)
    lock = acquire(plan.directory())
    assert lock is not None
    threading.Timer(1.0, release, [lock]).start()  # the other launcher dies without a record
    began = time.monotonic()
    assert run([plan]).records[plan.cell_id].status == "finite"
    assert time.monotonic() - began > 0.9 and len(starts(plan)) == 1


def test_two_launchers_share_a_grid(make_plan: MakePlan) -> None:
    plans = [make_plan(FINITE, data={**vars(make_plan().config.data), "batch": batch}) for batch in range(1, 7)]
    other = threading.Thread(target=run, args=[list(reversed(plans))])
    other.start()
    outcome = run(plans)
    other.join()
    assert len(outcome.records) == 6
    assert [len(starts(plan)) for plan in plans] == [1] * 6


def test_interrupt_stops_the_running_cells_and_leaves_them_unfinished(make_plan: MakePlan) -> None:
    plan = make_plan(HANGS)

    def interrupt() -> None:
        while not starts(plan):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run([plan])
    assert read_record(plan.directory()) is None and not is_held(plan.directory())


HANG = """
import sys
sys.path.append(sys.argv[1])
import fake_cell
from pathlib import Path
from nangrid.grid import process, worker
worker.CELL_MODULE, process.PRELOAD = "fake_cell", ("nangrid.grid.worker",)
cell = process.start(fake_cell.plan_in(Path(sys.argv[2]), fake_cell.HANGS), "grid")
cell.process.join()
sys.stdin.read()
"""


@pytest.mark.parametrize("victim", ["launcher", "server"])
def test_no_cell_outlives_its_launcher_or_the_fork_server(victim: str, tmp_path: Path, make_plan: MakePlan) -> None:
    arguments = [sys.executable, "-c", HANG, str(Path(__file__).parent), str(tmp_path / "grid")]
    launcher = subprocess.Popen(arguments, stdin=subprocess.PIPE)
    plan = make_plan(HANGS)
    while not starts(plan):
        time.sleep(0.05)
    cell = psutil.Process(starts(plan)[0])
    server = cell.parent()
    cell.suspend()  # it hangs: no thread of it can notice anything
    (server if victim == "server" else launcher).kill()
    cell.wait(timeout=10)
    assert not is_held(plan.directory())
    launcher.kill()
    launcher.wait()


def test_a_fork_server_that_dies_is_replaced(make_plan: MakePlan) -> None:
    hanging, finite = make_plan(HANGS), make_plan(FINITE)

    def harm() -> None:
        while not starts(hanging):
            time.sleep(0.05)
        cell = psutil.Process(starts(hanging)[0])
        server = cell.parent()
        cell.suspend()
        server.kill()

    threading.Thread(target=harm).start()
    outcome = run([hanging, finite], n_jobs=1)
    assert "fork server died" in outcome.stopped[hanging.cell_id]
    assert outcome.records[finite.cell_id].status == "finite"
    assert not is_held(hanging.directory())
