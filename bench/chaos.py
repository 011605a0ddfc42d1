"""Does a grid survive? Faults by kind, on real tiny cells, and what became of the grids that they hit.

    python bench/chaos.py --faults 300

Needs root (it mounts a small tmpfs and remounts it read-only). Each grid has six cells and is launched, hit by
faults at random moments, and launched again by the same command until it is finished (with resume=errored where
the command said so); then it is compared with an undisturbed one. bench/chaos_faults.py has the kinds.
Prints a table and writes bench/results/chaos.md. `--minutes` ends the campaign early.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chaos_faults import CELLS, FAULTS, FakeServer, Grid

from nangrid.grid.lock import ATTEMPTS
from nangrid.records.cell import RESULT, read_record
from nangrid.records.errors import RecordError
from nangrid.records.grid import GridDirectory
from nangrid.records.history import read_history, read_table

RESULTS = Path(__file__).parent / "results" / "chaos.md"
DISK_MB = 48
EXIT_CODES = (0, 1, 2, 130, *(-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)))
"""Of a launcher; those of signals where it was hit before it could heed them."""
GONE_S = 10.0
"""How long the processes of a killed launcher may live."""


class Campaign:
    """Grid after grid, until enough faults of every kind have hit."""

    def __init__(self, faults: int, kinds: list[str], seed: int, minutes: float, timeout_s: float, disk: Path) -> None:
        self.wanted = faults
        self.kinds = kinds
        self.began = time.monotonic()
        self.ends = self.began + minutes * 60
        self.draw = random.Random(seed)
        self.timeout_s = timeout_s
        self.disk = disk
        self.hits: Counter[str] = Counter()
        self.grids = self.launches = 0
        self.lost: list[str] = []
        self.twice: list[str] = []
        self.unequal: list[str] = []
        self.hangs: list[str] = []
        self.tracebacks = 0
        self.left_behind: list[float] = []
        self.server = FakeServer()
        self.reference: dict[str, Any] = {}

    def run(self) -> None:
        undisturbed = self._grid("undisturbed")
        self._until_finished(undisturbed)
        self.reference = contents(undisturbed.out)
        assert len(self.reference) == CELLS
        while self.hits.total() < self.wanted and time.monotonic() < self.ends:
            grid = self._grid(f"grid{self.grids}")
            self._under_fire(grid, self.draw.randint(15, 30))
            self._until_finished(grid)
            self._wait_until_gone(grid)
            self._compare(grid)
            self._read_log(grid)
            subprocess.run(["rm", "-rf", grid.out], check=True)
            self.grids += 1
            print(f"{self.grids} grids, {self.hits.total()} faults, {self.verdict()}", *self.unequal[-1:], flush=True)
            self.write()

    def write(self) -> None:
        """Write the table of the faults so far, if they are of every kind."""
        if self.kinds == list(FAULTS):
            RESULTS.write_text(table(self))

    def verdict(self) -> str:
        counts = {"lost": self.lost, "twice": self.twice, "unequal": self.unequal, "hangs": self.hangs}
        return ", ".join(f"{name} {len(found)}" for name, found in counts.items()) + f", tracebacks {self.tracebacks}"

    def _grid(self, name: str) -> Grid:
        return Grid(self.disk / name, self.server, self.timeout_s)

    def _under_fire(self, grid: Grid, faults: int) -> None:
        hit = 0
        while hit < faults:
            if self._ended(grid):
                return
            time.sleep(self.draw.choice([0.3, 1.0, 3.0, 8.0]) * self.draw.random())
            kind = min(self.kinds, key=lambda name: (self.hits[name], self.draw.random()))
            if self.draw.random() < 0.5:
                kind = self.draw.choice(self.kinds)
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
            if codes == [0] and len(grid.finished_cells()) >= CELLS and not self._broken(grid):
                return True
            grid.resume = "errored" if 1 in codes else "unfinished"
            self.launches += 1
            grid.launch()
        return False

    def _broken(self, grid: Grid) -> bool:
        """Whether a record was cut short since the last launcher looked."""
        try:
            return not self.reference.keys() <= contents(grid.out).keys()
        except (RecordError, ValueError, OSError):
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
        deadline = time.monotonic() + 30 * self.timeout_s
        while not self._ended(grid):
            if time.monotonic() > deadline:
                self.hangs.append(f"{grid.out.name} does not finish: see {grid.log}")
                for process in grid.processes():
                    process.kill()
                return
            time.sleep(0.2)

    def _read_log(self, grid: Grid) -> None:
        """Count the tracebacks that the launchers printed, and drop a log without any."""
        tracebacks = grid.log.read_text(errors="replace").count("Traceback (most recent call last)")
        self.tracebacks += tracebacks
        if not tracebacks:
            grid.log.unlink()

    def _compare(self, grid: Grid) -> None:
        found = contents(grid.out)
        self.lost += [f"{grid.out.name}/{cell}" for cell in self.reference.keys() - found.keys()]
        for cell, content in found.items():
            if cell in self.reference and content != self.reference[cell]:
                self.unequal.append(f"{grid.out.name}/{cell}: {difference(content, self.reference[cell])}")
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


def table(campaign: Campaign) -> str:
    rows = [f"| {kind} | {campaign.hits[kind]} |" for kind in FAULTS]
    longest = max(campaign.left_behind, default=0.0)
    minutes = (time.monotonic() - campaign.began) / 60
    facts = [
        f"| cells lost, of {campaign.grids * CELLS} | {len(campaign.lost)} |",
        f"| cells run twice | {len(campaign.twice)} |",
        f"| records unequal to the undisturbed grid's | {len(campaign.unequal)} |",
        f"| longest that a process outlived its launcher, s (of {len(campaign.left_behind)} ends) | {longest:.1f} |",
        f"| launches that hung | {len(campaign.hangs)} |",
        f"| tracebacks that launchers printed | {campaign.tracebacks} |",
        f"| grids, launches, minutes | {campaign.grids}, {campaign.launches}, {minutes:.0f} |",
    ]
    versions = (
        f"{os.cpu_count()} cores; Python {sys.version.split()[0]}, torch {version('torch')}, wandb {version('wandb')}"
    )
    head = [f"`python bench/chaos.py --faults {campaign.wanted}`", "", "| fault | times |", "| --- | ---: |"]
    total = f"| **all** | {campaign.hits.total()} |"
    return "\n".join([*head, *rows, total, "", "| what | seen |", "| --- | ---: |", *facts, "", versions, ""])


def mount_disk(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--timeout", type=float, default=20, help="time limit of a cell, s; more on a loaded machine")
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", metavar="TEXT", help="only the faults whose name has one of these texts")
    asked = parser.parse_args()
    # A shell lets its background jobs ignore Ctrl-C, and the launchers would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    disk = Path(tempfile.mkdtemp(prefix="chaos-"))
    full = Path(f"{disk}-full")
    full.mkdir()
    mount_disk(disk, f"{DISK_MB}m")
    mount_disk(full, "4k")
    (full / "ballast").write_bytes(b"\0" * 4096)
    kinds = [kind for kind in FAULTS if any(text in kind for text in asked.kinds or [""])]
    campaign = Campaign(asked.faults, kinds, asked.seed, asked.minutes, asked.timeout, disk)
    try:
        campaign.run()
    finally:
        campaign.server.close()
        print(*campaign.lost, *campaign.twice, *campaign.unequal, sep="\n")
        for mounted in (disk, full):
            subprocess.run(["umount", "--lazy", mounted], check=False)
        subprocess.run(["rm", "-rf", disk, full, f"{disk}-cache"], check=False)
    campaign.write()
    print(table(campaign))


if __name__ == "__main__":
    main()
