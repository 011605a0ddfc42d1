"""A real Slurm of one node on loopback, in a directory of its own: munged, slurmctld and slurmd of Debian's
packages slurmctld, slurmd, slurm-client and munge. Without accounting, as most machines would have it.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")

CONFIG = """\
ClusterName=nangrid
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=60 State=UP OverSubscribe=FORCE:4
"""


def missing() -> list[str]:
    """Which of its programs this machine lacks."""
    return [name for name in NEEDS if shutil.which(name, path=_path()) is None]


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Slurm's commands, the submitted jobs' included, speak to it while it lasts."""
    started: list[subprocess.Popen[bytes]] = []
    before = dict(os.environ)
    os.environ.update(PATH=_path(), SLURM_CONF=str(folder / "slurm.conf"))
    try:
        _write_config(folder)
        _start_munge(folder, started)
        for daemon in ("slurmctld", "slurmd"):
            started.append(subprocess.Popen([daemon, "-D"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        _wait_for("idle" in _said("sinfo", "--noheader", "--format=%T") for _ in range(300))
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=30)
        os.environ.clear()
        os.environ.update(before)


def _write_config(folder: Path) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ports = {"controller": _free_port(), "node": _free_port()}
    user = "root" if os.getuid() == 0 else os.environ["USER"]
    names = {"host": socket.gethostname().split(".")[0], "user": user, "cpus": os.cpu_count(), "folder": folder}
    (folder / "slurm.conf").write_text(CONFIG.format(**names, **ports))


def _start_munge(folder: Path, started: list[subprocess.Popen[bytes]]) -> None:
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    files = {name: folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
    options = [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in files.items()]
    command = ["munged", "--foreground", "--force", f"--key-file={key}", *options]
    started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    _wait_for(files["socket"].exists() for _ in range(100))


def _wait_for(conditions: Iterator[bool]) -> None:
    for met in conditions:
        if met:
            return
        time.sleep(0.1)
    raise TimeoutError("Slurm did not come up: see the logs in its folder.")


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"
