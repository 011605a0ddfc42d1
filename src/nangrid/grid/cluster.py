"""How are the cells run on a cluster? One job a cell, by submitit; the directory, on a disk that all see, is all
that launcher and jobs share.

What ended a job is asked of `squeue`, which still shows a job for some minutes after its end. `sacct`, which
submitit asks, needs an accounting database that many clusters, and all on one machine, lack.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nangrid.grid import worker
from nangrid.grid.collect import Collector, GridOutcome
from nangrid.grid.display import GridDisplay
from nangrid.grid.ending import OUT_OF_MEMORY, ExitReason, of_process
from nangrid.grid.lock import is_held
from nangrid.grid.plan import CellPlan
from nangrid.grid.worker import ENVIRONMENT, run_requested
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory, read_cell_record

TICK_S = 1.0
ASK_S = 5.0
"""How often the batch system is asked."""
SEEN_S = 15.0
"""How long a file written on another machine may take to be seen here."""

ENDINGS = {
    "OUT_OF_MEMORY": ExitReason("error", OUT_OF_MEMORY, "the job took more memory than it had asked for"),
    "TIMEOUT": ExitReason("timeout", "TimeoutError", "the job reached its time limit"),
    "DEADLINE": ExitReason("timeout", "TimeoutError", "the job reached its deadline"),
}
"""Slurm's state -> what it says of the cell; the others say that the job was ended from outside."""
UNKNOWN = ExitReason(None, "Stopped", "the job ended, and the batch system does not say how")
GOING_ON = {"PENDING", "CONFIGURING", "REQUEUED", "RUNNING", "SUSPENDED", "COMPLETING", "STAGE_OUT", "SIGNALING"}
KILLED = 128
"""A shell's exit code for a process that died of signal n is 128 + n."""


@dataclass(frozen=True)
class Cluster:
    """The cells as jobs of a batch system; `executor` and `params` are hydra-submitit-launcher's."""

    executor: str
    params: dict[str, Any]

    def check(self) -> None:
        """Submitit checks its parameters itself."""

    @property
    def max_parallel(self) -> int:
        """Cells side by side, if the cluster has room."""
        return int(self.params.get("array_parallelism") or 1)

    def warm_up(self) -> None:
        """InputError on a machine without Slurm."""
        if self.executor == "slurm" and not (shutil.which("srun") and shutil.which("sbatch")):
            raise InputError(
                "hydra/launcher=submitit_slurm needs Slurm's srun and sbatch, and this machine has none: "
                "launch from a login node, or leave it out to run the cells here."
            )

    def run(self, plans: Sequence[CellPlan], grid: GridDirectory) -> GridOutcome:
        """Submit the cells that are not done and return when all have ended; Ctrl-C cancels the jobs."""
        with GridDisplay(len(plans)) as display:
            queue = _Queue(Collector(grid, display), self)
            try:
                queue.run(plans)
            finally:
                for job in queue.jobs:
                    job.handle.cancel(check=False)
        return queue.collector.outcome

    def submit(self, plans: Sequence[CellPlan], grid: GridDirectory) -> list[Job]:
        """One array of jobs."""
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        os.environ.update(ENVIRONMENT)  # jobs inherit it
        shared = BaseQueueConf.__dataclass_fields__
        params = {key: value for key, value in self.params.items() if key not in ("submitit_folder", "max_num_timeout")}
        executor = submitit.AutoExecutor(folder=grid.path / ".submitit" / "%j", cluster=self.executor)
        executor.update_parameters(
            **{key if key in shared else f"{self.executor}_{key}": value for key, value in params.items()}
        )
        cells = [str(plan.directory()) for plan in plans]
        try:
            handles = executor.map_array(run_requested, cells, [worker.CELL_MODULE] * len(cells))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            said = " ".join(str(error).split())
            raise InputError(
                f"Slurm took none of the jobs: {said[-300:]}; see hydra.launcher.* in --cfg hydra."
            ) from error
        return [Job(plan, handle) for plan, handle in zip(plans, handles, strict=True)]


@dataclass
class Job:
    """A cell that has been submitted."""

    plan: CellPlan
    handle: Any
    submitted: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def returned(self) -> bool:
        """Whether the job has said its last word."""
        return bool(self.handle.paths.result_pickle.exists())

    def reply(self) -> worker.Reply:
        """That word; ("", "") if it has not come."""
        if not self.returned:
            return "", ""
        try:
            reply: worker.Reply = self.handle.results()[0]
        except Exception as error:  # whatever went wrong in the job before the cell began
            return worker.STOPPED, str(error).strip().splitlines()[-1]
        return reply


class _Queue:
    def __init__(self, collector: Collector, cluster: Cluster) -> None:
        self.collector = collector
        self.cluster = cluster
        self.jobs: list[Job] = []
        self.endings: dict[str, ExitReason] = {}
        """Of the jobs that the batch system knows to have ended, by job id."""
        self._asked = 0.0

    def run(self, plans: Sequence[CellPlan]) -> None:
        waiting = self.collector.still_to_run(plans)
        while waiting or self.jobs or self.collector.running_elsewhere:
            if waiting:
                self.jobs += self.cluster.submit(waiting, self.collector.grid)
            time.sleep(TICK_S)
            self._show()
            self._ask()
            self._settle_ended()
            waiting = self.collector.collect_elsewhere()

    def _show(self) -> None:
        for job in self.jobs:
            if is_held(job.plan.directory()):
                self.collector.display.begin(job.plan)
                self.collector.display.refresh(job.plan)

    def _ask(self) -> None:
        if self.jobs and time.monotonic() - self._asked > ASK_S:
            self._asked = time.monotonic()
            ask = ask_slurm if self.cluster.executor == "slurm" else ask_submitit
            self.endings |= ask([job.handle for job in self.jobs])

    def _settle_ended(self) -> None:
        for job in list(self.jobs):
            ending = self.endings.get(job.handle.job_id)
            if not job.returned and not self._has_been_gone(job, ending):
                continue
            self.jobs.remove(job)
            seconds = time.monotonic() - job.submitted
            self.collector.collect(job.plan, job.reply(), ending or UNKNOWN, seconds)

    def _has_been_gone(self, job: Job, ending: ExitReason | None) -> bool:
        """Whether the job ended so long ago that its last words would have come."""
        if ending is None:
            return False
        job.ended = job.ended or time.monotonic()
        return time.monotonic() - job.ended > SEEN_S or read_cell_record(job.plan.directory()) is not None


def ask_submitit(handles: Sequence[Any]) -> dict[str, ExitReason]:
    """How jobs without a batch system (submitit_local) ended."""
    return {handle.job_id: UNKNOWN for handle in handles if handle.done(force_check=True)}


def ask_slurm(handles: Sequence[Any]) -> dict[str, ExitReason]:
    """How those of the jobs ended that Slurm does not call running or waiting, by job id."""
    ids = sorted({handle.job_id.split("_")[0] for handle in handles})
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(ids)}"]
    said = subprocess.run([*command, "--Format=JobArrayID:|,State:|,exit_code:|"], capture_output=True, text=True)
    if said.returncode and "Invalid job id" not in said.stderr:
        return {}  # the controller does not answer: ask again
    rows = [line.strip().rstrip("|").split("|") for line in said.stdout.splitlines() if line.strip()]
    states = {job_id.strip(): (state.strip(), code.strip()) for job_id, state, code in rows}
    endings = {}
    for handle in handles:
        state, code = states.get(handle.job_id, ("GONE", ""))
        if state not in GOING_ON:
            endings[handle.job_id] = slurm_ending(state, code)
    return endings


def slurm_ending(state: str, exit_code: str) -> ExitReason:
    """Slurm's state and exit code (a wait status, or `status:signal`) as what they say of the cell."""
    if state != "FAILED":
        return ENDINGS.get(state, ExitReason(None, "Stopped", f"Slurm calls its job {state}"))
    if ":" in exit_code:
        status, sent = map(int, exit_code.split(":"))
        code = -sent or status
    else:
        code = os.waitstatus_to_exitcode(int(exit_code))
    return of_process(KILLED - code if code > KILLED else code, oom_kills=0)
