"""How often is a claim of `diagnose` false if the failure is stochastic, and how many runs does it take?

python bench/search_noise.py  (bench/rivals.py says what to install)

Seeded truth tables of 4 changes, with one or two causes of one to three changes. A cell with a cause fails in a share p
of its seeds, and every cell fails by itself in a share q. Only failing cells and references that pass as such with the
first seed are diagnosed. "false cause": a claim graded as proven that holds no cause; "false cure": a claim graded as
proven that leaves a cause; "too large": a cause graded as proven of which a part is a cause, if that part is not called
undecided. "kept": true causes that are claimed and graded as proven. "refused": the reference fails with one of the
first seeds.

Then another event competes, in cells that hold one to three changes of its own: it comes "first" in some runs, or in
all runs in which no cause acts ("otherwise"). Runs are drawn by cell and seed, or by seed alone ("seeds"). "leaves
other": a cure graded as proven leaves the other event's cause.

The last table has the first tables beside BugDoc, which runs each cell once, and mlbisect, which averages seeds.
"found all": the claimed causes hold exactly the cells with a cause. "false": a table with a claim that holds a cell
without one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import mean

from rivals import Rule, bugdoc, mlbisect
from rivals import judge as judge_rules
from truth_oracle import OTHER, diagnose

from nangrid.analysis.causes import Event
from nangrid.analysis.claims import Grade
from nangrid.diagnosis.diagnose import Diagnosis
from nangrid.records.errors import InputError

CHANGES, TABLES, RIVAL_TABLES, MAX_RUNS = 4, 300, 20, 400


@dataclass(frozen=True)
class Noise:
    """How a truth table's runs vary."""

    p: float = 1.0
    """Share of seeds in which a cause acts."""
    q: float = 0.0
    """Share of seeds in which any cell fails by itself."""
    seeds: int = 3
    most: int = MAX_RUNS
    """Runs that may be made."""
    has_cause: bool = True
    other: float = 0.0
    """Share of runs with the other event's cause in which this event comes first."""
    same_seeds: bool = False
    """Whether these are the same seeds in all cells."""
    instead: bool = False
    """Whether the causes do not act in these runs, in cells with the other event's cause or without."""
    behind: bool = False
    """Whether the other event comes second where a cause acts; with same_seeds a cause acts in the same seeds, too."""


SCENARIOS = {
    "deterministic, 3 seeds": Noise(),
    "deterministic, 1 seed": Noise(seeds=1),
    "p = 0.8, 3 seeds": Noise(p=0.8),
    "p = 0.67, 3 seeds": Noise(p=0.67),
    "p = 0.67, 5 seeds": Noise(p=0.67, seeds=5),
    "p = 0.5, 3 seeds": Noise(p=0.5),
    "p = 0.5, 5 seeds": Noise(p=0.5, seeds=5),
    "p = 0.33, 3 seeds": Noise(p=0.33),
    "q = 2 %, 3 seeds": Noise(q=0.02),
    "q = 10 %, 3 seeds": Noise(q=0.1),
    "p = 0.67, q = 2 %, 3 seeds": Noise(p=0.67, q=0.02),
    "no cause, q = 2 %, 3 seeds": Noise(q=0.02, has_cause=False),
    "no cause, q = 10 %, 3 seeds": Noise(q=0.1, has_cause=False),
}
COMPETING = {
    "first in 20 % of runs": Noise(other=0.2),
    "first in 50 % of runs": Noise(other=0.5),
    "first in 20 % of seeds": Noise(other=0.2, same_seeds=True),
    "first in 50 % of seeds": Noise(other=0.5, same_seeds=True),
    "first in 50 % of seeds, in which no cause acts": Noise(other=0.5, same_seeds=True, instead=True),
    "first in 30 % of runs, p = 0.67": Noise(p=0.67, other=0.3),
    "first in 50 % of runs, no cause, q = 2 %": Noise(q=0.02, has_cause=False, other=0.5),
    "first in 50 % of seeds, no cause, q = 10 %": Noise(q=0.1, has_cause=False, other=0.5, same_seeds=True),
    "otherwise, p = 0.8": Noise(p=0.8, other=1.0, behind=True),
    "otherwise, p = 0.8, same seeds": Noise(p=0.8, other=1.0, behind=True, same_seeds=True),
    "otherwise, p = 0.67": Noise(p=0.67, other=1.0, behind=True),
    "otherwise, p = 0.67, same seeds": Noise(p=0.67, other=1.0, behind=True, same_seeds=True),
    "otherwise, p = 0.67, same seeds, 5 seeds": Noise(p=0.67, seeds=5, other=1.0, behind=True, same_seeds=True),
    "otherwise, p = 0.5": Noise(p=0.5, other=1.0, behind=True),
    "otherwise, p = 0.5, same seeds": Noise(p=0.5, other=1.0, behind=True, same_seeds=True),
    "otherwise, no cause, q = 2 %": Noise(q=0.02, has_cause=False, other=1.0, behind=True),
    "otherwise, no cause, q = 10 %": Noise(q=0.1, has_cause=False, other=1.0, behind=True),
    "otherwise, no cause, q = 20 %": Noise(q=0.2, has_cause=False, other=1.0, behind=True),
    "otherwise, no cause, q = 10 %, same seeds": Noise(q=0.1, has_cause=False, other=1.0, behind=True, same_seeds=True),
}
FEW_RUNS = {
    "p = 0.67, at most 18 runs": Noise(p=0.67, most=18),
    "p = 0.5, at most 18 runs": Noise(p=0.5, most=18),
    "p = 0.5, at most 40 runs": Noise(p=0.5, most=40),
    "q = 10 %, at most 18 runs": Noise(q=0.1, most=18),
}
ALL_SCENARIOS = SCENARIOS | COMPETING | FEW_RUNS
RESULT = Path(__file__).parent / "results" / "search_noise.md"

CLAIMS = ("refused", "false_cause", "false_cure", "too_large")

Levels = frozenset[str]
ALL = frozenset(f"f{i}=1" for i in range(CHANGES))


@dataclass(frozen=True)
class Table:
    """A truth table: its causes, the cause of another event, and how its runs vary."""

    name: str
    causes: list[Levels]
    other: Levels
    noise: Noise

    @classmethod
    def drawn(cls, scenario: str, number: int) -> Table:
        """The table of this number."""
        noise, name = ALL_SCENARIOS[scenario], f"{scenario} {number}"
        draw = random.Random(name)
        sizes = [draw.choice([1, 1, 2, 2, 3]) for _ in range(draw.choice([1, 1, 2]))] if noise.has_cause else []
        causes = {frozenset(f"f{i}=1" for i in draw.sample(range(CHANGES), size)) for size in sizes}
        causes = {cause for cause in causes if not any(other < cause for other in causes)}
        return cls(
            name, list(causes), frozenset(f"f{i}=1" for i in draw.sample(range(CHANGES), draw.choice([1, 2, 3]))), noise
        )

    def fails(self, levels: Levels, seed: int) -> bool | Event:
        """Whether a run fails: with the event, or with another one that comes first."""
        chance = random.Random(f"{self.name} {sorted(levels)} {seed}")
        where = seed if self.noise.same_seeds else f"{sorted(levels)} {seed}"
        other = random.Random(f"{self.name} other {where}")
        draw = random.Random(f"{self.name} {seed}") if self.noise.behind and self.noise.same_seeds else chance
        acts = any(cause <= levels and draw.random() < self.noise.p for cause in self.causes)
        fails = acts or chance.random() < self.noise.q
        others = other.random() < self.noise.other
        if others and self.other <= levels and not (fails and self.noise.behind):
            return OTHER
        return fails and not (others and self.noise.instead)


def judge(found: Diagnosis, table: Table) -> Counter[str]:
    """What was claimed wrongly, and what was kept."""
    causes = table.causes
    proven = [
        {changes for changes, claim in claims.items() if claim.grade is Grade.PROVEN}
        for claims in (found.cause_claims, found.cure_claims)
    ]
    claimed = {frozenset(f"f{i}=1" for i in changes) for changes in proven[0]}
    open_ = {frozenset(f"f{i}=1" for i in changes) for changes in found.causes.skipped}
    if found.spent:
        open_ |= set(causes)
    cured = [frozenset(f"f{i}=1" for i in range(CHANGES) if i not in changes) for changes in proven[1]]
    return Counter(
        false_cause=any(not any(cause <= claim for cause in causes) for claim in claimed),
        false_cure=any(cause <= rest for cause in causes for rest in cured),
        leaves_other=bool(table.noise.other) and any(table.other <= rest for rest in cured),
        too_large=any(cause < claim and cause not in open_ for cause in causes for claim in claimed),
        kept=sum(cause in claimed for cause in causes),
        causes=len(causes),
    )


def tables(name: str, count: int) -> Iterator[Table]:
    """Tables whose end points fail with the event, and train, with the first seed."""
    drawn = (Table.drawn(name, number) for number in range(1, 50 * count + 1))
    return islice((of for of in drawn if of.fails(ALL, 0) is True and not of.fails(frozenset(), 0)), count)


def row(name: str, shown: Sequence[str]) -> str:
    """One scenario, with the shares of the verdicts that are shown."""
    told, runs, verdicts = Counter[str](), [], 0
    for of_one in tables(name, TABLES):
        verdicts += 1
        try:
            found = diagnose(of_one.fails, [0] * CHANGES, of_one.noise.seeds, of_one.noise.most)
        except InputError:
            told["refused"] += 1
            continue
        told += judge(found, of_one)
        runs.append(found.runs)
    shares = [f"{told[key] / verdicts:.1%}" for key in shown]
    kept = f"{told['kept'] / told['causes']:.0%}" if told["causes"] else ""
    return f"| {name} | {verdicts} | {' | '.join(shares)} | {kept} | {mean(runs):.0f} ({max(runs)}) |"


def rows(scenarios: Iterable[str], shown: Sequence[str] = CLAIMS) -> Iterator[str]:
    """A table of scenarios."""
    yield f"| scenario | verdicts | {' | '.join(key.replace('_', ' ') for key in shown)} | kept | runs (most) |"
    yield f"| --- {'| ---: ' * (len(shown) + 3)}|"
    for name in scenarios:
        line = row(name, shown)
        print(line, flush=True)
        yield line


def ours(table: Table) -> tuple[list[Rule], int]:
    """Proven causes and runs of `diagnose`; none if it refuses the reference, after one run per seed of both."""
    try:
        found = diagnose(table.fails, [0] * CHANGES, table.noise.seeds, MAX_RUNS)
    except InputError:
        return [], 2 * table.noise.seeds
    proven = (changes for changes, claim in found.cause_claims.items() if claim.grade is Grade.PROVEN)
    return [frozenset(f"f{i}=1" for i in changes).__le__ for changes in proven], found.runs


def rival_row(name: str) -> str:
    """One scenario: all three searches."""
    columns = list[str]()
    methods: list[Callable[[Table], tuple[list[Rule], int]]] = [
        ours,
        lambda table: bugdoc(lambda cell: bool(table.fails(cell & ALL, 0)), [1] * CHANGES, MAX_RUNS),
        lambda table: mlbisect(lambda *cell: bool(table.fails(*cell)), CHANGES, MAX_RUNS),
    ]
    for method in methods:
        found = [(of_one.causes, *method(of_one)) for of_one in tables(name, RIVAL_TABLES)]
        right, false = zip(*(judge_rules(rules, [1] * CHANGES, causes) for causes, rules, _ in found), strict=True)
        columns += [f"{mean(right):.0%}", f"{mean(false):.0%}", f"{mean(runs for *_, runs in found):.0f}"]
    return f"| {name} | {len(found)} | {' | '.join(columns)} |"


def main() -> None:
    lines = [
        f"`python bench/search_noise.py`: up to {TABLES} truth tables per row, at most {MAX_RUNS} runs each.",
        "",
        *rows(SCENARIOS),
        "",
        "With few runs:",
        "",
        *rows(FEW_RUNS),
        "",
        "Another event competes: it comes first in some runs, or in all runs in which no cause acts. A cure that",
        "leaves its cause trained with every seed: three runs seldom show what comes in one run of five.",
        "",
        *rows(COMPETING, (*CLAIMS, "leaves_other")),
        "",
        f"Beside BugDoc and mlbisect, up to {RIVAL_TABLES} tables per row of the first table:",
        "",
        "| scenario | tables | nangrid: found all | false | runs | BugDoc: found all | false | runs "
        "| mlbisect: found all | false | runs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in SCENARIOS:
        lines.append(rival_row(name))
        print(lines[-1], flush=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
