"""Does a grid survive? Faults by kind, on real tiny cells, and what became of the grids that they hit.

    python bench/chaos.py --faults 200

Needs root (it mounts a small tmpfs and remounts it read-only). Each grid has six cells and is launched, hit by
faults at random moments, and launched again by the same command until it is finished (with resume=errored where
the command said so); then it is compared with an undisturbed one. Prints a table and writes
bench/results/chaos.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from nangrid.grid.lock import ATTEMPTS
from nangrid.records.cell import RESULT, read_record
from nangrid.records.errors import RecordError
from nangrid.records.grid import GRID, GridDirectory
from nangrid.records.history import HISTORY, read_history, read_table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "chaos.md"
sys.path.append(str(ROOT / "tests" / "tracking"))

from fake_server import FakeServer  # noqa: E402

GRID_ARGUMENTS = ["-m", "model=tiny", "data=glossary", "data.bos=false", "dtype=bf16,fp16,fp32", "init=zero,mean"]
CELLS = 6
LAUNCH = [*GRID_ARGUMENTS, "horizon=20", "hydra.launcher.n_jobs=2"]
TIMEOUT_S = 20
DISK_MB = 24
EXIT_CODES = (0, 1, 2, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)
"""Of a launcher; those of signals where it was hit before it could heed them."""
GONE_S = 10.0
"""How long the processes of a killed launcher may live."""


@dataclass
class Grid:
    """One grid under fire."""

    out: Path
    server: FakeServer
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    launchers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    resume: str = "unfinished"

    def launch(self) -> None:
        command = [sys.executable, "-m", "src.run", *LAUNCH, f"out={self.out}", f"resume={self.resume}"]
        command += [f"hydra.launcher.timeout_s={TIMEOUT_S}", "tracker.mode=online"]
        environment = os.environ | {
            "CHAOS": self.mark,
            "WANDB_BASE_URL": self.server.url,
            "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
            "HF_HUB_OFFLINE": "1",
        }
        with self.log.open("ab") as log:
            self.launchers.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
            )

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
        cells = [cell for cell in grid.finished_cells() if (cell / name).exists()]
        if not cells:
            return False
        path = draw.choice(cells) / name
        grid.damaged.add(path.parent.name)
        os.truncate(path, draw.randrange(path.stat().st_size))
        return True

    return cut


def truncate_grid(grid: Grid, draw: random.Random) -> bool:
    path = grid.out / GRID
    if not grid.finished_cells() or not path.exists():
        return False
    os.truncate(path, draw.randrange(path.stat().st_size))
    return True


def second_launcher(grid: Grid, draw: random.Random) -> bool:
    if len(grid.launchers) != 1:
        return False
    grid.launch()
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
    "a second launcher": second_launcher,
    "W&B's server drops": drop_wandb,
}


class Campaign:
    """Grid after grid, until enough faults of every kind have hit."""

    def __init__(self, faults: int, seed: int, disk: Path) -> None:
        self.wanted = faults
        self.draw = random.Random(seed)
        self.disk = disk
        self.hits: Counter[str] = Counter()
        self.grids = self.launches = 0
        self.lost: list[str] = []
        self.twice: list[str] = []
        self.unequal: list[str] = []
        self.left_behind: list[float] = []
        self.server = FakeServer()
        self.reference: dict[str, Any] = {}

    def run(self) -> None:
        undisturbed = self._grid("undisturbed")
        self._until_finished(undisturbed)
        self.reference = contents(undisturbed.out)
        assert len(self.reference) == CELLS
        while self.hits.total() < self.wanted:
            grid = self._grid(f"grid{self.grids}")
            self._under_fire(grid, self.draw.randint(3, 6))
            self._until_finished(grid)
            self._wait_until_gone(grid)
            self._compare(grid)
            subprocess.run(["rm", "-rf", grid.out, grid.log], check=True)
            self.grids += 1
            print(f"{self.grids} grids, {self.hits.total()} faults, {self.verdict()}", *self.unequal[-1:], flush=True)
        self.server.close()

    def verdict(self) -> str:
        return f"lost {len(self.lost)}, twice {len(self.twice)}, unequal {len(self.unequal)}"

    def _grid(self, name: str) -> Grid:
        return Grid(self.disk / name, self.server)

    def _under_fire(self, grid: Grid, faults: int) -> None:
        hit = 0
        while hit < faults:
            if self._ended(grid):
                return
            time.sleep(self.draw.choice([0.3, 1.0, 3.0, 8.0]) * self.draw.random())
            kind = min(FAULTS, key=lambda name: (self.hits[name], self.draw.random()))
            if self.draw.random() < 0.5:
                kind = self.draw.choice(list(FAULTS))
            if FAULTS[kind](grid, self.draw):
                self.hits[kind] += 1
                hit += 1
                print(f"  {time.strftime('%T')} {grid.out.name}: {kind}", flush=True)
            self._watch_the_dead(grid)

    def _ended(self, grid: Grid) -> bool:
        """Launch if no launcher is left; whether the last one has finished the grid."""
        codes = grid.reap()
        if any(code not in EXIT_CODES for code in codes):
            raise AssertionError(f"a launcher ended with {codes}: see {grid.log}")
        if not grid.launchers:
            if codes == [0] and len(grid.finished_cells()) == CELLS and not self._broken(grid):
                return True
            grid.resume = "errored" if 1 in codes else "unfinished"
            self.launches += 1
            grid.launch()
        return False

    def _broken(self, grid: Grid) -> bool:
        """Whether a record was cut short since the last launcher looked."""
        try:
            return len(contents(grid.out)) < CELLS
        except (RecordError, ValueError):
            return True

    def _watch_the_dead(self, grid: Grid) -> None:
        """A killed launcher's processes must be gone soon, before anybody launches again."""
        time.sleep(0.1)
        if grid.launchers and all(launcher.poll() == -signal.SIGKILL for launcher in grid.launchers):
            self._wait_until_gone(grid)

    def _wait_until_gone(self, grid: Grid) -> None:
        began = time.monotonic()
        while grid.processes() and time.monotonic() - began < 3 * GONE_S:
            time.sleep(0.1)
        self.left_behind.append(time.monotonic() - began)

    def _until_finished(self, grid: Grid) -> None:
        deadline = time.monotonic() + 600
        while not self._ended(grid):
            assert time.monotonic() < deadline, f"{grid.out} does not finish: see {grid.log}"
            time.sleep(0.2)

    def _compare(self, grid: Grid) -> None:
        found = contents(grid.out)
        self.lost += [f"{grid.out.name}/{cell}" for cell in self.reference.keys() - found.keys()]
        for cell, content in found.items():
            if content != self.reference.get(cell):
                self.unequal.append(f"{grid.out.name}/{cell}: {difference(content, self.reference.get(cell))}")
        for attempt in grid.out.glob(f"cells/*/{ATTEMPTS}/*"):
            with suppress(RecordError):
                record = read_record(attempt)
                whole = record and not record.error and read_table(attempt).num_rows == record.steps_done
                if whole and attempt.parents[1].name not in grid.damaged:
                    self.twice.append(str(attempt))


def contents(out: Path) -> dict[str, Any]:
    """By cell, all that must be equal: record, history and autopsy, without what the clock and the machine say."""
    found = {}
    grid = GridDirectory.open(out)
    for cell in grid.cells():
        if (cell / RESULT).exists():
            record = json.loads((cell / RESULT).read_text())
            if record["status"] in ("error", "timeout"):
                continue
            for key in ("seconds", "peak_rss_bytes", "grid_id"):
                del record[key]
            record["overrides"] = [o for o in record["overrides"] if not o.startswith(("out=", "resume="))]
            history = read_history(cell).drop(columns="seconds").to_json(orient="split", double_precision=15)
            autopsy = json.loads((cell / "autopsy.json").read_text()) if record["autopsy"] else None
            found[cell.name] = (record, history, autopsy)
    return found


def difference(found: Any, reference: Any) -> str:
    parts = zip(("record", "history", "autopsy"), found, reference or (None,) * 3, strict=True)
    return "; ".join(f"{name} {str(a)[:3000]} not {str(b)[:3000]}" for name, a, b in parts if a != b)


def table(campaign: Campaign, seconds: float) -> str:
    rows = [f"| {kind} | {campaign.hits[kind]} |" for kind in FAULTS]
    longest = max(campaign.left_behind, default=0.0)
    facts = [
        f"| cells lost, of {campaign.grids * CELLS} | {len(campaign.lost)} |",
        f"| cells run twice | {len(campaign.twice)} |",
        f"| records unequal to the undisturbed grid's | {len(campaign.unequal)} |",
        f"| longest that a process outlived its launcher, s (of {len(campaign.left_behind)} ends) | {longest:.1f} |",
        f"| grids, launches, minutes | {campaign.grids}, {campaign.launches}, {seconds / 60:.0f} |",
    ]
    versions = (
        f"{os.cpu_count()} cores; Python {sys.version.split()[0]}, torch {version('torch')}, wandb {version('wandb')}"
    )
    head = [f"`python bench/chaos.py --faults {campaign.wanted}`", "", "| fault | times |", "| --- | ---: |"]
    total = f"| **all** | {campaign.hits.total()} |"
    return "\n".join([*head, *rows, total, "", "| what | seen |", "| --- | ---: |", *facts, "", versions, ""])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    disk = Path(tempfile.mkdtemp(prefix="chaos-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", disk], check=True)
    began = time.monotonic()
    campaign = Campaign(asked.faults, asked.seed, disk)
    try:
        campaign.run()
    finally:
        print(*campaign.lost, *campaign.twice, *campaign.unequal, sep="\n")
        subprocess.run(["umount", "--lazy", disk], check=False)
    text = table(campaign, time.monotonic() - began)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
