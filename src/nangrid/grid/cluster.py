"""Runs the cells of a grid on a cluster, one submitit job per cell.

Launcher and jobs share nothing but the grid's directory, which must be on a disk that all of them see. Job states are
read from `squeue`, which lists a job for some minutes after its end. `sacct`, which submitit uses, needs an accounting
database that many clusters, and every single-machine Slurm, lack.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nangrid.grid import worker
from nangrid.grid.collect import Collector, GridOutcome
from nangrid.grid.display import GridDisplay
from nangrid.grid.exit_reason import OUT_OF_MEMORY, ExitReason
from nangrid.grid.lock import is_held
from nangrid.grid.plan import CellPlan
from nangrid.grid.worker import ENVIRONMENT, Reply, ReplyKind, run_requested
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory, read_cell_record

TICK_S = 1.0
POLL_S = 5.0
"""Seconds between two queries of the batch system."""
VISIBLE_S = 15.0
"""Seconds that a file written on another machine may take to become visible here."""

EXIT_REASONS = {
    "OUT_OF_MEMORY": ExitReason("error", OUT_OF_MEMORY, "the job used more memory than it had requested"),
    "TIMEOUT": ExitReason("timeout", "TimeoutError", "the job reached its time limit"),
    "DEADLINE": ExitReason("timeout", "TimeoutError", "the job reached its deadline"),
}
"""By Slurm's job state; any other state means that the job was ended from outside."""
UNKNOWN = ExitReason.stopped("the job ended, and the batch system does not say how")
ACTIVE = {"PENDING", "CONFIGURING", "REQUEUED", "RUNNING", "SUSPENDED", "COMPLETING", "STAGE_OUT", "SIGNALING"}
KILLED = 128
"""A shell's exit code for a process that died of signal n is KILLED + n."""


@dataclass(frozen=True)
class Cluster:
    """Runs each cell as a job of a batch system; `executor` and `params` are hydra-submitit-launcher's."""

    executor: str
    params: dict[str, Any]

    def check(self) -> None:
        """Submitit checks its parameters itself."""

    @property
    def max_parallel(self) -> int:
        """Cells that run in parallel if the cluster has room."""
        return int(self.params.get("array_parallelism") or 1)

    def warm_up(self) -> None:
        """InputError on a machine without Slurm."""
        if self.executor == "slurm" and not (shutil.which("srun") and shutil.which("sbatch")):
            raise InputError(
                "hydra/launcher=submitit_slurm needs Slurm's srun and sbatch, and this machine has none: "
                "launch from a login node, or omit it to run the cells here."
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
        """Submit the cells as one job array."""
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        os.environ.update(ENVIRONMENT)  # jobs inherit it
        shared = BaseQueueConf.__dataclass_fields__
        params = {key: value for key, value in self.params.items() if key not in ("submitit_folder", "max_num_timeout")}
        # a random name: submitit unpickles what lies there, and nobody may have put it there before
        folder = grid.path / f".submitit-{secrets.token_hex(8)}" / "%j"
        executor = submitit.AutoExecutor(folder=folder, cluster=self.executor)
        executor.update_parameters(
            **{key if key in shared else f"{self.executor}_{key}": value for key, value in params.items()}
        )
        cells = [str(plan.directory()) for plan in plans]
        try:
            handles = executor.map_array(run_requested, cells, [worker.CELL_MODULE] * len(cells))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            words = " ".join(str(error).split())
            raise InputError(
                f"Slurm accepted none of the jobs: {words[-300:]}; see hydra.launcher.* in --cfg hydra."
            ) from error
        return [Job(plan, handle) for plan, handle in zip(plans, handles, strict=True)]


@dataclass
class Job:
    """A submitted cell."""

    plan: CellPlan
    handle: Any
    submitted: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def returned(self) -> bool:
        """Whether the job has written its reply."""
        return bool(self.handle.paths.result_pickle.exists())

    def reply(self) -> Reply:
        """The job's reply; DONE if it ended without one."""
        if not self.returned:
            return Reply()
        try:
            reply: Reply = self.handle.results()[0]
        except Exception as error:  # whatever went wrong in the job before the cell began
            return Reply(ReplyKind.STOPPED, str(error).strip().splitlines()[-1])
        return reply


class _Queue:
    def __init__(self, collector: Collector, cluster: Cluster) -> None:
        self.collector = collector
        self.cluster = cluster
        self.jobs: list[Job] = []
        self.exit_reasons: dict[str, ExitReason] = {}
        """Why jobs ended, by job id, for those that the batch system knows to have ended."""
        self._polled = 0.0

    def run(self, plans: Sequence[CellPlan]) -> None:
        waiting = self.collector.still_to_run(plans)
        while waiting or self.jobs or self.collector.running_elsewhere:
            if waiting:
                self.jobs += self.cluster.submit(waiting, self.collector.grid)
            time.sleep(TICK_S)
            self._show()
            self._poll()
            self._collect_ended()
            waiting = self.collector.collect_elsewhere()

    def _show(self) -> None:
        for job in self.jobs:
            if is_held(job.plan.directory()):
                self.collector.display.begin(job.plan)
                self.collector.display.refresh(job.plan)

    def _poll(self) -> None:
        if self.jobs and time.monotonic() - self._polled > POLL_S:
            self._polled = time.monotonic()
            query = query_slurm if self.cluster.executor == "slurm" else query_submitit
            self.exit_reasons |= query([job.handle for job in self.jobs])

    def _collect_ended(self) -> None:
        for job in list(self.jobs):
            reason = self.exit_reasons.get(job.handle.job_id)
            if not job.returned and not self._is_gone(job, reason):
                continue
            self.jobs.remove(job)
            seconds = time.monotonic() - job.submitted
            self.collector.collect(job.plan, job.reply(), reason or UNKNOWN, seconds)

    def _is_gone(self, job: Job, reason: ExitReason | None) -> bool:
        """Whether the job ended so long ago that its reply, had it written one, would be visible here."""
        if reason is None:
            return False
        job.ended = job.ended or time.monotonic()
        return time.monotonic() - job.ended > VISIBLE_S or read_cell_record(job.plan.directory()) is not None


def query_submitit(handles: Sequence[Any]) -> dict[str, ExitReason]:
    """Which jobs have ended, by job id, where there is no batch system (submitit_local)."""
    return {handle.job_id: UNKNOWN for handle in handles if handle.done(force_check=True)}


def query_slurm(handles: Sequence[Any]) -> dict[str, ExitReason]:
    """Why jobs ended, by job id, for those that Slurm no longer calls running or waiting."""
    ids = sorted({handle.job_id.split("_")[0] for handle in handles})
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(ids)}"]
    squeue = subprocess.run([*command, "--Format=JobArrayID:|,State:|,exit_code:|"], capture_output=True, text=True)
    if squeue.returncode and "Invalid job id" not in squeue.stderr:
        return {}  # the controller does not answer: try again at the next poll
    rows = [line.strip().rstrip("|").split("|") for line in squeue.stdout.splitlines() if line.strip()]
    states = {job_id.strip(): (state.strip(), code.strip()) for job_id, state, code in rows}
    reasons = {}
    for handle in handles:
        state, code = states.get(handle.job_id, ("GONE", ""))
        if state not in ACTIVE:
            reasons[handle.job_id] = slurm_exit_reason(state, code)
    return reasons


def slurm_exit_reason(state: str, exit_code: str) -> ExitReason:
    """From Slurm's job state and exit code, which is a wait status or `status:signal`, by its version."""
    if state != "FAILED":
        return EXIT_REASONS.get(state, ExitReason.stopped(f"Slurm reports its job as {state}"))
    if ":" in exit_code:
        status, number = map(int, exit_code.split(":"))
        code = -number or status
    else:
        code = os.waitstatus_to_exitcode(int(exit_code))
    return ExitReason.from_exit_code(KILLED - code if code > KILLED else code, oom_kills=0)
