"""Measures how often a verdict says something false, on random grids whose truth is known.

    python bench/verdicts.py [--tables 100] [--before OTHER_CHECKOUT/src] [--draw 0]

Each table has 3 to 6 factors of 2 or 3 levels, one or two causes of up to three levels per event, and noise: a cause
acts in a share p of its runs, and any run fails by itself in a share q. A cause or cure that the verdict states without
reservation is false if the truth denies it; what one run alone shows is stated with one. Also: how often the intervals
that a report prints hold the truth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("--tables", type=int, default=100)
PARSER.add_argument("--before", type=Path)
PARSER.add_argument("--draw", type=int, default=0, help="which tables are drawn")
PARSER.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
OPTIONS = PARSER.parse_args()
if OPTIONS.measure:  # another checkout's code, not the installed one's
    sys.path.insert(0, str(OPTIONS.measure))

from nangrid.analysis.causes import Grid  # noqa: E402
from nangrid.records.autopsy import Autopsy, Suggestion  # noqa: E402
from nangrid.records.cell import CLOCKS, CellError, CellRecord, Seconds, Trains, earliest_onset  # noqa: E402

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "verdicts.md"
BEFORE = "84c1c97"

SCENARIOS: dict[str, dict[str, Any]] = {
    "whole grid, 1 seed": {},
    "whole grid, 1 seed, not monotone": {"monotone": False},
    "whole grid, 1 seed, up to 3 events": {"most_events": 3},
    "whole grid, 1 seed, up to 3 events, not monotone": {"most_events": 3, "monotone": False},
    "60 % of cells, 1 seed": {"keep": 0.6},
    "30 % of cells, 1 seed": {"keep": 0.3},
    "60 % of cells, 1 seed, 3 events, 5 % crashed": {"keep": 0.6, "most_events": 3, "errors": 0.05},
    "3 seeds, p = 0.67": {"seeds": 3, "p": 0.67},
    "3 seeds, p = 0.33": {"seeds": 3, "p": 0.33},
    "3 seeds, q = 2 %": {"seeds": 3, "q": 0.02},
    "3 seeds, q = 5 %": {"seeds": 3, "q": 0.05},
    "3 seeds, p = 0.67, q = 2 %": {"seeds": 3, "p": 0.67, "q": 0.02},
    "3 seeds, no factor acts, q = 2 %": {"seeds": 3, "q": 0.02, "null": True},
    "3 seeds, no factor acts, q = 10 %": {"seeds": 3, "q": 0.10, "null": True},
    "5 seeds, p = 0.67": {"seeds": 5, "p": 0.67},
    "5 seeds, p = 0.67, q = 2 %": {"seeds": 5, "p": 0.67, "q": 0.02},
    "3 seeds, another event follows": {"seeds": 3, "follows": True},
    "3 seeds, p = 0.67, another event follows": {"seeds": 3, "p": 0.67, "follows": True},
    "5 seeds, p = 0.67, another event follows": {"seeds": 5, "p": 0.67, "follows": True},
    "3 seeds, no factor acts, q = 2 %, another event follows": {"seeds": 3, "q": 0.02, "null": True, "follows": True},
    "3 seeds, no factor acts, q = 10 %, another event follows": {"seeds": 3, "q": 0.10, "null": True, "follows": True},
    "1 seed, q = 2 %": {"q": 0.02},
    "1 seed, no factor acts, q = 5 %": {"q": 0.05, "null": True},
    "60 % of cells, 1 seed, q = 2 %": {"keep": 0.6, "q": 0.02},
    "1 seed, q = 2 %, each autopsy names a factor": {"q": 0.02, "named": 1},
    "1 seed, q = 2 %, each autopsy names three factors": {"q": 0.02, "named": 3},
    "60 % of cells, 1 seed, q = 2 %, each autopsy names three factors": {"keep": 0.6, "q": 0.02, "named": 3},
    "1 seed, no factor acts, q = 5 %, each autopsy names a factor": {"q": 0.05, "null": True, "named": 1},
    "1 seed, no factor acts, q = 5 %, each autopsy names three factors": {"q": 0.05, "null": True, "named": 3},
}

FOLLOWING = "F"
NAMES = ("dtype", "init", "optim", "upcast", "targets", "checkpointing")
HEAD = (
    "| grids | verdicts | false cause: before | after | false cure: before | after | causes kept: before | after "
    "| of these by one run |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
Cell = tuple[str, ...]
Where = dict[int, str]


class Table:
    """A truth table and the records that its runs left."""

    def __init__(
        self, rng: Random, most_events: int = 1, monotone: bool = True, null: bool = False, follows: bool = False
    ) -> None:
        """`null`: no factor acts. `follows`: a level has another event in all runs, unless one of these comes first."""
        self.levels = _levels(rng)
        self.names = list(NAMES[: len(self.levels)])
        self.events: dict[str, tuple[int, list[Where], list[Where]]] = {}
        for number in range(rng.randint(1, most_events)):
            onset = rng.choice([0, 0, 1, 3])
            number_of_causes = 0 if null else rng.choice([1, 1, 2])
            causes = [self._where(rng, rng.choice([1, 1, 2, 2, 3])) for _ in range(number_of_causes)]
            blocks = [] if monotone or null else [self._where(rng, 1)]
            self.events[f"E{number}"] = (onset, causes, blocks)
        if follows:
            self.events[FOLLOWING] = (4, [self._where(rng, 1)], [])

    def _where(self, rng: Random, size: int) -> Where:
        return {i: rng.choice(self.levels[i][1:]) for i in rng.sample(range(len(self.levels)), size)}

    def has(self, event: str, cell: Cell) -> bool:
        """Whether the truth is that the cell can have the event."""
        _, causes, blocks = self.events[event]
        return any(_fits(cell, c) for c in causes) and not any(_fits(cell, b) for b in blocks)

    def fails(self, cell: Cell) -> bool:
        """Whether it can have any event."""
        return any(self.has(event, cell) for event in self.events)

    def run(
        self,
        rng: Random,
        seeds: int = 1,
        p: float = 1.0,
        q: float = 0.0,
        keep: float = 1.0,
        errors: float = 0.0,
        named: int = 0,
    ) -> Any:
        """The grid of its runs.

        `named`: the replays repeat every failing step, and suggest to change so many factors, drawn at random.
        """
        kept = [cell for cell in product(*self.levels) if rng.random() < keep]
        crashed = {cell for cell in kept if rng.random() < errors}
        records, autopsies = [], {}
        for number, (cell, seed) in enumerate(product(kept, range(seeds))):
            met = [
                (onset, event)
                for event, (onset, *_) in self.events.items()
                if (self.has(event, cell) and (event == FOLLOWING or rng.random() < p))
                or (event != FOLLOWING and q and rng.random() < q)
            ]
            onset, event = min(met, default=(None, None))
            factors = dict(zip(self.names, cell, strict=True)) | {"seed": seed}
            record = _record(f"{number:012x}", factors, onset, cell in crashed)
            records.append(record)
            if event and cell not in crashed:
                autopsies[record.cell_id] = _autopsy(event, rng.sample(self.names, min(named, len(self.names))))
        return Grid(records, autopsies) if records else None


def _levels(rng: Random) -> list[list[str]]:
    count = rng.randint(3, 6)
    while True:
        levels = [[f"{'abcdef'[i]}{j}" for j in range(rng.randint(2, 3))] for i in range(count)]
        if len(list(product(*levels))) <= 96:
            return levels


def _fits(cell: Cell, where: Where) -> bool:
    return all(cell[i] == level for i, level in where.items())


def _record(cell_id: str, factors: dict[str, Any], onset: int | None, crashed: bool) -> Any:
    clocks = dict.fromkeys(CLOCKS) | ({} if onset is None or crashed else {"loss": onset})
    first = earliest_onset(clocks)
    return CellRecord(
        cell_id, "grid", [], factors, "error" if crashed else "nonfinite" if first else "finite", 16,
        16 if first is None else first.step + 1, first is None, first, clocks, Trains(None, [], 1e-3, 4.0, 3.0), {}, {},
        None, None, Seconds(1, 1, 0), 1, CellError("RuntimeError", "", "") if crashed else None,
    )  # fmt: skip


def _autopsy(event: str, factors: list[str]) -> Any:
    """`factors`: those that it suggests to change, after a replay that repeats the step to the last bit."""
    nothing: dict[str, Any] = dict.fromkeys(Autopsy.__dataclass_fields__)
    if factors:
        nothing |= {"reproduced": True, "suggestions": [Suggestion("", f"{factor}=other") for factor in factors]}
    return Autopsy(**nothing | {"mechanism": event, "phase": "forward", "kind": "overflow"})


def judge(table: Table, grid: Any) -> Counter[str]:
    """What the verdict of a grid states, and what of it is false."""
    found: Counter[str] = Counter()
    reference = dict(grid.reference.levels)
    base = tuple(reference.get(name, of_one[0]) for name, of_one in zip(table.names, table.levels, strict=True))
    for verdict in grid.event_verdicts(grid.reference):
        event = verdict.event.mechanism
        # not in every checkout that can be measured
        by_one_run = {frozenset(cause.levels) for cause in verdict.causes if getattr(cause, "one_run", False)}
        for cause in (cause for cause in verdict.causes if frozenset(cause.levels) not in by_one_run):
            found += _judged_cause(table, event, base, cause)
        found["false necessary"] += _false_necessary(table, event, base, verdict)
        claimed = {frozenset(cause.levels) for cause in verdict.causes}
        for truth in _true_causes(table, event, base):
            levels = dict(zip(table.names, _put(table, base, truth), strict=True))
            cell = grid.combinations.get(tuple((factor, levels[factor]) for factor in grid.factors))
            if cell and cell.by_seed and not any(e and e.mechanism != event for e in cell.events):
                found["true"] += 1
                found["kept"] += frozenset(truth) in claimed
                found["kept by one run"] += frozenset(truth) in by_one_run
        reserved = getattr(verdict, "one_run", lambda levels: False)
        for levels, cures in ((levels, cures) for levels, cures in verdict.cures.items() if not reserved(levels)):
            failing = _put(table, base, levels)
            after = [_put(table, failing, cure.changes) for cure in cures]
            found["cures"] += len(cures)
            found["false cure"] += sum(table.fails(cell) or not table.fails(failing) for cell in after)
    return found


def _put(table: Table, cell: Cell, levels: Any) -> Cell:
    changed = dict(levels)
    return tuple(changed.get(name, level) for name, level in zip(table.names, cell, strict=True))


def _judged_cause(table: Table, event: str, base: Cell, cause: Any) -> Counter[str]:
    """A cause is false if it is not enough, or if part of it is and the verdict does not call that undecided."""
    subsets = [s for size in range(len(cause.levels)) for s in combinations(cause.levels, size)]
    enough = [s for s in subsets if table.has(event, _put(table, base, s))]
    false = not table.has(event, _put(table, base, cause.levels)) or any(s not in cause.open for s in enough)
    false |= any(table.has(event, _put(table, base, c.levels)) for c in cause.without)
    return Counter({"causes": 1, "false cause": int(false)})


def _false_necessary(table: Table, event: str, base: Cell, verdict: Any) -> bool:
    causes = _true_causes(table, event, base)
    return len(verdict.causes) > 1 and any(not set(verdict.necessary) <= set(cause) for cause in causes)


def _true_causes(table: Table, event: str, base: Cell) -> list[Any]:
    factors = zip(table.names, base, table.levels, strict=True)
    changes = [(name, level) for name, own, of_one in factors for level in of_one if level != own]
    found: list[Any] = []
    for size in range(4):
        for levels in combinations(changes, size):
            if len(dict(levels)) == size and not any(set(smaller) <= set(levels) for smaller in found):
                found += [levels] if table.has(event, _put(table, base, levels)) else []
    return found


def measure(name: str, tables: int) -> dict[str, float]:
    """One row: the verdicts, and the shares of them with a false cause or cure."""
    settings = SCENARIOS[name]
    truth = {key: settings[key] for key in ("most_events", "monotone", "null", "follows") if key in settings}
    noise = {key: value for key, value in settings.items() if key not in truth}
    total: Counter[str] = Counter()
    for number in range(tables):
        rng = Random(f"{name} {number}" + f" {OPTIONS.draw}" * bool(OPTIONS.draw))
        table = Table(rng, **truth)
        grid = table.run(rng, **noise)
        if grid is None or grid.reference is None or not grid.events():
            continue
        found = judge(table, grid)
        total += found
        total["verdicts"] += 1
        total["verdicts with a false cause"] += bool(found["false cause"] or found["false necessary"])
        total["verdicts with a false cure"] += bool(found["false cure"])
    return dict(total)


def coverages() -> list[str]:
    """How often each printed interval holds the truth, at the rate where it does so least."""
    from nangrid.analysis.claims import clopper_pearson  # not in every checkout that can be measured
    from nangrid.analysis.rates import unseen

    chances = np.linspace(0.02, 0.98, 49)
    rows = []
    for n in (3, 5, 10):
        ends = [clopper_pearson(met, n) for met in range(n + 1)]
        held = [sum(binom.pmf(m, n, p) for m, (low, up) in enumerate(ends) if low <= p <= up) for p in chances]
        rows.append(f"| rate of a combination, survival curve | {n} seeds | 95 % | {min(held):.1%} |")
        never = [1 - binom.pmf(0, n, p) * (p > unseen(n)) for p in chances]
        rows.append(f"| never seen in n seeds | {n} seeds | 95 % | {min(never):.1%} |")
    for seeds in (5, 8):
        held = [_effect_coverage(p, seeds) for p in (0.1, 0.33, 0.5, 0.67, 0.9)]
        rows.append(f"| difference in steps survived | {seeds} seeds | 95 % | {min(held):.1%} |")
    return rows


def _effect_coverage(p: float, seeds: int, repeats: int = 200) -> float:
    """A level that fails at step 0 in a share p of seeds, in two contexts, against one that never fails."""
    from nangrid.analysis.effects import contrasts

    rng, held = Random(f"{p} {seeds}"), 0
    for _ in range(repeats):
        rows = []
        for a, b, seed in product(("a0", "a1"), ("b0", "b1"), range(seeds)):
            failed = a == "a1" and rng.random() < p
            row = {"A": a, "B": b, "seed": seed, "status": "nonfinite" if failed else "finite", "cell_id": ""}
            rows.append(row | {"time": 0 if failed else 16, "event": "E" if failed else None, "flagged": False})
        table = pd.DataFrame(rows).astype({"event": "string"})
        (row,) = contrasts(table, {"A": "a0", "B": "b0"}, {}).query("factor == 'A'").to_dict("records")
        held += row["lower"] <= -16 * p <= row["upper"]
    return held / repeats


def _measured(tables: int, src: Path) -> dict[str, dict[str, Any]]:
    """The rows of a checkout, measured in a process of its own."""
    command = [sys.executable, __file__, "--tables", str(tables), "--draw", str(OPTIONS.draw), "--measure", str(src)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}


def _share(row: dict[str, Any], what: str, of: str) -> str:
    return f"{row.get(what, 0) / row[of]:.0%}" if row.get(of) else ""


def _line(name: str, after: dict[str, Any], before: dict[str, Any]) -> str:
    columns = [name, str(after["verdicts"])]
    for what in ("verdicts with a false cause", "verdicts with a false cure"):
        columns += [_share(before, what, "verdicts"), _share(after, what, "verdicts")]
    kept = [f"{_share(row, 'kept', 'true')} of {row['true']}" if row.get("true") else "" for row in (before, after)]
    return f"| {' | '.join([*columns, *kept, _share(after, 'kept by one run', 'true')])} |"


def write(tables: int, after: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]]) -> None:
    """The results as a page."""
    drawn = f" --draw {OPTIONS.draw}" if OPTIONS.draw else ""
    lines = [
        "# False claims of a verdict",
        "",
        f"`python bench/verdicts.py --tables {tables}{drawn}`; `--before` measured commit {BEFORE}. {tables} random",
        "tables per row; those in which nothing failed, or nothing trained, have no verdict. A claim is false if it is",
        "stated without reservation and the truth denies it. A cause is kept if the verdict states it as sufficient.",
        "What one run alone shows is stated with the reservation that another seed would tell; the last column is the",
        "share of true causes that are kept with it. True causes whose cell was not run, or failed in another way",
        "first, are not counted.",
        "",
        *HEAD,
        *(_line(name, row, before.get(name, {})) for name, row in after.items() if "named" not in SCENARIOS[name]),
        "",
        "The tables have no autopsies, so that one run is never enough. In the next rows each autopsy repeats its step",
        "to the last bit and names factors at random, also where no factor acts. That evidence is false. A cause that",
        "one run shows is stated without reservation only if its autopsy names each of its factors, though not every",
        "factor of the grid, and if other runs do not contradict it.",
        "",
        *HEAD,
        *(_line(name, row, before.get(name, {})) for name, row in after.items() if "named" in SCENARIOS[name]),
        "",
        "## Coverage of the printed intervals",
        "",
        "At the rate where it is lowest: exact over 49 rates for rates, 200 simulated grids per rate for differences.",
        "Below five seeds no interval of a difference is printed.",
        "",
        "| interval | seeds | nominal | least coverage |",
        "| --- | --- | --- | --- |",
        *coverages(),
    ]
    RESULT.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Measure a checkout, or compare two."""
    if OPTIONS.measure:
        for name in SCENARIOS:
            print(json.dumps({"name": name} | measure(name, OPTIONS.tables)), flush=True)
        return
    before = _measured(OPTIONS.tables, OPTIONS.before) if OPTIONS.before else {}
    write(OPTIONS.tables, _measured(OPTIONS.tables, ROOT / "src"), before)


if __name__ == "__main__":
    main()
