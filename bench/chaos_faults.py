"""The grids of bench/chaos.py, and the kinds of faults that hit them."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from nangrid.records.cell import REQUEST, RESULT
from nangrid.records.grid import GRID
from nangrid.records.history import HISTORY

ROOT = Path(__file__).parents[1]
SITE = Path(__file__).parent / "chaos_site"
sys.path.append(str(ROOT / "tests" / "tracking"))

from fake_server import FakeServer  # noqa: E402

GRID_ARGUMENTS = ["-m", "model=tiny", "data=glossary", "data.bos=false", "dtype=bf16,fp16,fp32", "init=zero,mean"]
CELLS = 6
LAUNCH = [*GRID_ARGUMENTS, "horizon=20", "keep_every=5", "hydra.launcher.n_jobs=2"]
OTHER_GRID = ["-m", "model=tiny", "data=glossary", "seed=7", "init=zero,mean", "horizon=4"]
"""Other cells in the same directory."""


@dataclass
class Grid:
    """One grid under fire."""

    out: Path
    server: FakeServer
    timeout_s: float
    """Time limit of a cell."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    launchers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    resume: str = "unfinished"
    surroundings: dict[str, str | None] = field(default_factory=dict)
    """Variables of the next launcher's environment; None removes one."""
    output_closed: bool = False
    """Whether nobody reads the next launcher's output."""

    def launch(self, arguments: list[str] = LAUNCH) -> None:
        command = [sys.executable, "-m", "src.run", *arguments, f"out={self.out}", f"resume={self.resume}"]
        command += [f"hydra.launcher.timeout_s={self.timeout_s}", "tracker.mode=online"]
        environment = os.environ | {
            "CHAOS": self.mark,
            "CHAOS_PLAN": str(self.plan),
            "PYTHONPATH": f"{SITE}{os.pathsep}{ROOT / 'src'}",
            "NANGRID_CACHE": str(self.cache),
            "WANDB_BASE_URL": self.server.url,
            "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
            "HF_HUB_OFFLINE": "1",
        }
        changed = {name: value for name, value in self.surroundings.items() if value is not None}
        environment = {k: v for k, v in (environment | changed).items() if self.surroundings.get(k, v) is not None}
        with self.log.open("ab") as log:
            out = _pipe_without_reader() if self.output_closed else log.fileno()
            self.launchers.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=log, start_new_session=True)
            )
        if self.output_closed:
            os.close(out)
        self.surroundings, self.output_closed = {}, False

    @property
    def plan(self) -> Path:
        return self.log.with_suffix(".json")

    @property
    def cache(self) -> Path:
        return Path(f"{self.out.parent}-cache")

    @contextmanager
    def planned(self, **faults: Any) -> Iterator[None]:
        """Inside the block, bench/chaos_site makes these faults in the grid's processes."""
        self.plan.write_text(json.dumps(faults))
        yield
        self.plan.unlink()

    @property
    def log(self) -> Path:
        return Path(tempfile.gettempdir()) / f"chaos-{self.mark}.log"

    def reap(self) -> list[int]:
        """Exit codes of the launchers that have ended."""
        ended = [launcher for launcher in self.launchers if launcher.poll() is not None]
        self.launchers = [launcher for launcher in self.launchers if launcher.poll() is None]
        return [launcher.returncode for launcher in ended]

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("CHAOS") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def server_processes(self) -> list[psutil.Process]:
        launchers = {launcher.pid for launcher in self.launchers}
        return [p for p in self.processes() if p.ppid() in launchers and "forkserver" in " ".join(p.cmdline())]

    def cells(self) -> list[psutil.Process]:
        servers = {process.pid for process in self.server_processes()}
        return [process for process in self.processes() if process.ppid() in servers]

    def finished_cells(self) -> list[Path]:
        return [path.parent for path in self.out.glob(f"cells/*/{RESULT}")]


def _pipe_without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


Fault = Callable[[Grid, random.Random], bool]
"""Does the harm; False if there was nothing to harm."""


def kill(process: psutil.Process | None, number: signal.Signals = signal.SIGKILL) -> bool:
    if process is None:
        return False
    try:
        process.send_signal(number)
    except psutil.Error:
        return False
    return True


OUTSIDE_SIGNALS = (signal.SIGUSR1, signal.SIGALRM, signal.SIGBUS, signal.SIGXCPU)


def one_of(processes: list[psutil.Process], draw: random.Random) -> psutil.Process | None:
    return draw.choice(processes) if processes else None


def launcher_of(grid: Grid) -> psutil.Process | None:
    with suppress(psutil.Error):
        return psutil.Process(grid.launchers[0].pid) if grid.launchers else None
    return None


def eat_memory(grid: Grid, draw: random.Random) -> bool:
    """Its next allocation of any size fails, as under `ulimit -v`."""
    cell = one_of(grid.cells(), draw)
    if cell is None:
        return False
    try:
        resource.prlimit(cell.pid, resource.RLIMIT_AS, (cell.memory_info().vms + 2**18, resource.RLIM_INFINITY))
    except (psutil.Error, OSError):
        return False
    return True


def fill_disk(grid: Grid, draw: random.Random) -> bool:
    ballast = grid.out.parent / "ballast"
    with suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(b"\0" * 2**16)
            file.flush()
    time.sleep(draw.uniform(1, 4))
    ballast.unlink()
    return True


def read_only(grid: Grid, draw: random.Random) -> bool:
    remount = ["mount", "-o", "remount"]
    if subprocess.run([*remount, "ro", grid.out.parent], capture_output=True).returncode:
        # files are open for writing: a read-only bind mount over the cells is refused as well
        return False
    time.sleep(draw.uniform(1, 3))
    subprocess.run([*remount, "rw", grid.out.parent], check=True)
    return True


def truncate(name: str) -> Fault:
    def cut(grid: Grid, draw: random.Random) -> bool:
        paths = [cell / name for cell in grid.finished_cells()]
        paths = [path for path in paths if path.is_file() and path.stat().st_size]
        if not paths:
            return False
        path = draw.choice(paths)
        grid.damaged.add(path.parent.name)
        os.truncate(path, draw.randrange(path.stat().st_size))
        return True

    return cut


def truncate_grid(grid: Grid, draw: random.Random) -> bool:
    path = grid.out / GRID
    if not grid.finished_cells() or not path.is_file():
        return False
    os.truncate(path, draw.randrange(path.stat().st_size))
    return True


def second_launcher(grid: Grid, draw: random.Random) -> bool:
    if len(grid.launchers) != 1:
        return False
    grid.launch()
    return True


def other_grid(grid: Grid, draw: random.Random) -> bool:
    if len(grid.launchers) != 1:
        return False
    grid.launch(OTHER_GRID)
    return True


def full_at(*names: str) -> Fault:
    """The disk is full for writes of files whose path has one of these names."""

    def fill(grid: Grid, draw: random.Random) -> bool:
        with grid.planned(full=names):
            time.sleep(draw.uniform(2, 6))
        return True

    return fill


def full_at_conversion(grid: Grid, draw: random.Random) -> bool:
    shutil.rmtree(grid.cache, ignore_errors=True)
    return full_at("-cache/")(grid, draw)


def move_clock(grid: Grid, draw: random.Random) -> bool:
    with grid.planned(clock=draw.choice([-86400, -60, 60, 86400])):
        time.sleep(draw.uniform(1, 5))
    return True


def pause_launcher(grid: Grid, draw: random.Random) -> bool:
    launcher = launcher_of(grid)
    if not kill(launcher, signal.SIGSTOP):
        return False
    time.sleep(grid.timeout_s + 2)
    return kill(launcher, signal.SIGCONT)


def delete_out(grid: Grid, draw: random.Random) -> bool:
    if not grid.finished_cells():
        return False
    grid.damaged.update(path.name for path in grid.finished_cells())
    shutil.rmtree(grid.out, ignore_errors=True)
    return True


def bind_read_only(grid: Grid, draw: random.Random) -> bool:
    if not grid.out.is_dir() or subprocess.run(["mount", "--bind", grid.out, grid.out], check=False).returncode:
        return False
    subprocess.run(["mount", "-o", "remount,ro,bind", grid.out], check=True)
    time.sleep(draw.uniform(1, 4))
    subprocess.run(["umount", "--lazy", grid.out], check=True)
    return True


def replace_record(grid: Grid, draw: random.Random) -> bool:
    """A record becomes a directory, or empty."""
    names = (RESULT, HISTORY, REQUEST, "autopsy.json")
    paths = [path for name in names for path in grid.out.glob(f"cells/*/{name}") if path.is_file()]
    if not paths:
        return False
    path = draw.choice(paths)
    grid.damaged.add(path.parent.name)
    path.unlink()
    path.mkdir() if draw.random() < 0.5 else path.touch()
    return True


def few_descriptors(grid: Grid, draw: random.Random) -> bool:
    process = one_of(grid.processes(), draw)
    if process is None:
        return False
    try:
        used, (soft, hard) = process.num_fds(), resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + draw.randint(0, 8), hard))
        time.sleep(draw.uniform(1, 4))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    except (psutil.Error, OSError):
        return False
    return True


def interrupt_twice(grid: Grid, draw: random.Random) -> bool:
    launcher = launcher_of(grid)
    if not kill(launcher, signal.SIGINT):
        return False
    time.sleep(draw.choice([0.0, 0.05, 0.5, 2.0]))
    kill(launcher, signal.SIGINT)
    return True


def stop_launchers(grid: Grid) -> bool:
    for launcher in grid.launchers:
        launcher.terminate()
    for launcher in grid.launchers:
        launcher.wait(300)
    return bool(grid.launchers)


def relaunched(closed: bool = False, **surroundings: str | None) -> Fault:
    """The launchers are stopped, and the next one starts in other surroundings."""

    def stop(grid: Grid, draw: random.Random) -> bool:
        grid.surroundings, grid.output_closed = dict(surroundings), closed
        return stop_launchers(grid)

    return stop


def corrupt_cache(grid: Grid, draw: random.Random) -> bool:
    files = [path for path in grid.cache.glob("*/**/*") if path.is_file() and path.stat().st_size]
    if not files:
        return False
    path = draw.choice(files)
    os.truncate(path, draw.randrange(path.stat().st_size))
    return True


def convert_at_once(grid: Grid, draw: random.Random) -> bool:
    """Two launchers find no cache; one of them may be killed in the middle of the conversion."""
    if not stop_launchers(grid):
        return False
    shutil.rmtree(grid.cache, ignore_errors=True)
    grid.launch()
    grid.launch()
    if draw.random() < 0.5:
        time.sleep(draw.uniform(3, 10))
        kill(launcher_of(grid))
    return True


def drop_wandb(grid: Grid, draw: random.Random) -> bool:
    grid.server.status = draw.choice([-1, 500, 403])
    time.sleep(draw.uniform(0.5, 3))
    grid.server.status = 200
    return True


FAULTS: dict[str, Fault] = {
    "SIGKILL of a cell": lambda grid, draw: kill(one_of(grid.cells(), draw)),
    "SIGKILL of the launcher": lambda grid, draw: kill(launcher_of(grid)),
    "SIGKILL of the fork server": lambda grid, draw: kill(one_of(grid.server_processes(), draw)),
    "SIGKILL of any process": lambda grid, draw: kill(one_of(grid.processes(), draw)),
    "SIGTERM to a cell": lambda grid, draw: kill(one_of(grid.cells(), draw), signal.SIGTERM),
    "SIGTERM to the launcher": lambda grid, draw: kill(launcher_of(grid), signal.SIGTERM),
    "SIGINT to the launcher": lambda grid, draw: kill(launcher_of(grid), signal.SIGINT),
    "a cell hangs (SIGSTOP)": lambda grid, draw: kill(one_of(grid.cells(), draw), signal.SIGSTOP),
    "a cell's memory runs out": eat_memory,
    "the disk is full for a while": fill_disk,
    "the disk is read-only for a while": read_only,
    f"{RESULT} cut short": truncate(RESULT),
    f"{HISTORY} cut short": truncate(HISTORY),
    "autopsy.json cut short": truncate("autopsy.json"),
    f"{GRID} cut short": truncate_grid,
    "a record emptied or replaced by a directory": replace_record,
    "a second launcher": second_launcher,
    "a launcher of other cells in the same directory": other_grid,
    "SIGHUP to the launcher": lambda grid, draw: kill(launcher_of(grid), signal.SIGHUP),
    "SIGUSR1, SIGALRM, SIGBUS or SIGXCPU to a cell": lambda grid, draw: kill(
        one_of(grid.cells(), draw), draw.choice(OUTSIDE_SIGNALS)
    ),
    "Ctrl-C twice": interrupt_twice,
    "the launcher is paused for longer than the time limit": pause_launcher,
    "the clock moves": move_clock,
    "the disk is full for snapshots": full_at("snapshot."),
    "the disk is full for parquet files": full_at(".parquet"),
    "the disk is full for W&B": full_at("/wandb"),
    "the disk is full for the model's conversion": full_at_conversion,
    "the output directory is deleted": delete_out,
    "the output directory is read-only for a while": bind_read_only,
    "few file descriptors": few_descriptors,
    "no HOME": relaunched(HOME=None),
    "a HOME that cannot be written": relaunched(HOME="/proc", NANGRID_CACHE=None),
    "a full temporary directory": lambda grid, draw: relaunched(TMPDIR=f"{grid.out.parent}-full")(grid, draw),
    "nobody reads the output": relaunched(closed=True),
    "no terminal, LANG=C": relaunched(TERM=None, LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    "the model's cache is corrupted": corrupt_cache,
    "two launchers convert the model at once": convert_at_once,
    "W&B's server drops": drop_wandb,
}
