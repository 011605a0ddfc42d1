"""How often is a claim of `diagnose` false if the failure is stochastic, and how many runs does it take?

python bench/search_noise.py  (bench/rivals.py says what to install)

Seeded truth tables of 4 changes, with one or two causes of one to three changes. A cell with a cause fails in a share p
of its seeds, and every cell fails by itself in a share q. Only failing cells and references that pass as such with the
first seed are diagnosed. "false cause": a claim graded as proven that holds no cause; "false cure": a claim graded as
proven that leaves a cause; "too large": a cause graded as proven of which a part is a cause, if that part is not called
undecided. "kept": true causes that are claimed and graded as proven. "refused": the reference fails with one of the
first seeds.

The second table has the same tables beside BugDoc, which runs each cell once, and mlbisect, which averages seeds.
"found all": the claimed causes hold exactly the cells with a cause. "false": a table with a claim that holds a cell
without one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import mean

from rivals import Rule, bugdoc, mlbisect
from rivals import judge as judge_rules
from truth_oracle import diagnose

from nangrid.analysis.claims import Grade
from nangrid.diagnosis.diagnose import Diagnosis
from nangrid.records.errors import InputError

CHANGES, TABLES, RIVAL_TABLES, MAX_RUNS = 4, 300, 20, 400
SCENARIOS: dict[str, tuple[float, float, int, bool]] = {
    "deterministic, 3 seeds": (1.0, 0.0, 3, True),
    "deterministic, 1 seed": (1.0, 0.0, 1, True),
    "p = 0.8, 3 seeds": (0.8, 0.0, 3, True),
    "p = 0.67, 3 seeds": (0.67, 0.0, 3, True),
    "p = 0.67, 5 seeds": (0.67, 0.0, 5, True),
    "p = 0.5, 3 seeds": (0.5, 0.0, 3, True),
    "p = 0.5, 5 seeds": (0.5, 0.0, 5, True),
    "p = 0.33, 3 seeds": (0.33, 0.0, 3, True),
    "q = 2 %, 3 seeds": (1.0, 0.02, 3, True),
    "q = 10 %, 3 seeds": (1.0, 0.1, 3, True),
    "p = 0.67, q = 2 %, 3 seeds": (0.67, 0.02, 3, True),
    "no cause, q = 2 %, 3 seeds": (1.0, 0.02, 3, False),
    "no cause, q = 10 %, 3 seeds": (1.0, 0.1, 3, False),
}
RESULT = Path(__file__).parent / "results" / "search_noise.md"

Levels = frozenset[str]
ALL = frozenset(f"f{i}=1" for i in range(CHANGES))


def table(name: str, number: int) -> tuple[list[Levels], Callable[[Levels, int], bool]]:
    """The causes of a truth table, and the table."""
    p, q, _, has_cause = SCENARIOS[name]
    draw = random.Random(f"{name} {number}")
    sizes = [draw.choice([1, 1, 2, 2, 3]) for _ in range(draw.choice([1, 1, 2]))] if has_cause else []
    causes = {frozenset(f"f{i}=1" for i in draw.sample(range(CHANGES), size)) for size in sizes}
    causes = {cause for cause in causes if not any(other < cause for other in causes)}

    def fails(levels: Levels, seed: int) -> bool:
        chance = random.Random(f"{name} {number} {sorted(levels)} {seed}")
        return any(cause <= levels and chance.random() < p for cause in causes) or chance.random() < q

    return list(causes), fails


def judge(found: Diagnosis, causes: list[Levels]) -> Counter[str]:
    """What was claimed wrongly, and what was kept."""
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
        too_large=any(cause < claim and cause not in open_ for cause in causes for claim in claimed),
        kept=sum(cause in claimed for cause in causes),
        causes=len(causes),
    )


def tables(name: str, count: int) -> Iterator[tuple[list[Levels], Callable[[Levels, int], bool]]]:
    """Tables whose end points fail and train with the first seed."""
    drawn = (table(name, number) for number in range(1, 50 * count + 1))
    return islice(((c, fails) for c, fails in drawn if fails(ALL, 0) and not fails(frozenset(), 0)), count)


def row(name: str) -> str:
    """One scenario."""
    told, runs, verdicts = Counter[str](), [], 0
    for causes, fails in tables(name, TABLES):
        verdicts += 1
        try:
            found = diagnose(fails, [0] * CHANGES, SCENARIOS[name][2], MAX_RUNS)
        except InputError:
            told["refused"] += 1
            continue
        told += judge(found, causes)
        runs.append(found.runs)
    shares = [f"{told[key] / verdicts:.1%}" for key in ("refused", "false_cause", "false_cure", "too_large")]
    kept = f"{told['kept'] / told['causes']:.0%}" if told["causes"] else ""
    return f"| {name} | {verdicts} | {' | '.join(shares)} | {kept} | {mean(runs):.0f} ({max(runs)}) |"


def ours(fails: Callable[[Levels, int], bool], seeds: int) -> tuple[list[Rule], int]:
    """Proven causes and runs of `diagnose`; none if it refuses the reference, after one run per seed of both."""
    try:
        found = diagnose(fails, [0] * CHANGES, seeds, MAX_RUNS)
    except InputError:
        return [], 2 * seeds
    proven = (changes for changes, claim in found.cause_claims.items() if claim.grade is Grade.PROVEN)
    return [frozenset(f"f{i}=1" for i in changes).__le__ for changes in proven], found.runs


def rival_row(name: str) -> str:
    """One scenario: all three searches."""
    seeds, columns = SCENARIOS[name][2], list[str]()
    methods: list[Callable[[Callable[[Levels, int], bool]], tuple[list[Rule], int]]] = [
        lambda fails: ours(fails, seeds),
        lambda fails: bugdoc(lambda cell: fails(cell & ALL, 0), [1] * CHANGES, MAX_RUNS),
        lambda fails: mlbisect(fails, CHANGES, MAX_RUNS),
    ]
    for method in methods:
        found = [(causes, *method(fails)) for causes, fails in tables(name, RIVAL_TABLES)]
        right, false = zip(*(judge_rules(rules, [1] * CHANGES, causes) for causes, rules, _ in found), strict=True)
        columns += [f"{mean(right):.0%}", f"{mean(false):.0%}", f"{mean(runs for *_, runs in found):.0f}"]
    return f"| {name} | {len(found)} | {' | '.join(columns)} |"


def main() -> None:
    lines = [
        f"`python bench/search_noise.py`: up to {TABLES} truth tables per row, at most {MAX_RUNS} runs each.",
        "",
        "| scenario | verdicts | refused | false cause | false cure | too large | kept | runs (most) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in SCENARIOS:
        lines.append(row(name))
        print(lines[-1], flush=True)
    lines += [
        "",
        f"Beside BugDoc and mlbisect, up to {RIVAL_TABLES} of these tables per row:",
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
