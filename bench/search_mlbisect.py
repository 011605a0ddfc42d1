"""What does `diagnose` find on the six cases of mlbisect's own lab, beside mlbisect?

python bench/search_mlbisect.py

The scripts of mlbisect's Regression Lab are not on PyPI. Its six cases are rebuilt from the table in its README, with
the simulator that it ships for them (`FakeExecutor`) and the effects of its tests: a culprit takes 0.3 from a metric of
0.9, the smallest meaningful drop is 0.1, and the small effect of L04 is half of that. Every run adds noise.
mlbisect sees the metric. nangrid sees whether a run fails: a drop of more than half the smallest meaningful one, as is
mlbisect's threshold; the failing run and the reference must do so with the first seeds. "right": what the README gives
as the truth is claimed and nothing else; for L04 and L06 that is no culprit at all. "false": a culprit is claimed that
has no effect.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from mlbisect.config import Configuration
from mlbisect.executors import FakeExecutor
from mlbisect.sampler import AdaptiveSampler
from mlbisect.search import find_culprits
from rivals import manifest
from truth_oracle import diagnose

from nangrid.analysis.claims import Grade
from nangrid.records.errors import InputError

TRIALS, MOST = 20, 60
BASELINE, CULPRIT, SMALL, SMALLEST = 0.9, -0.3, -0.05, 0.1
NOISES = (0.01, 0.03, 0.05)
RESULT = Path(__file__).parent / "results" / "search_mlbisect.md"

Culprits = set[frozenset[str]]
CASES: dict[str, tuple[int, FakeExecutor, Culprits]] = {  # changes, simulator, what the README gives as the truth
    "L01 data skew": (3, FakeExecutor(BASELINE, {"f0": CULPRIT}), {frozenset({"f0"})}),
    "L02 preprocessing bump": (3, FakeExecutor(BASELINE, {"f1": CULPRIT}), {frozenset({"f1"})}),
    "L03 interaction": (
        3,
        FakeExecutor(BASELINE, interactions={frozenset({"f0", "f1"}): CULPRIT}),
        {frozenset({"f0", "f1"})},
    ),
    "L04 small effect": (3, FakeExecutor(BASELINE, {"f0": SMALL}), set()),
    "L05 decoy axes": (8, FakeExecutor(BASELINE, {"f2": CULPRIT}), {frozenset({"f2"})}),
    "L06 no regression": (3, FakeExecutor(BASELINE), set()),
}


def theirs(name: str, trial: int) -> tuple[Culprits, int]:
    """Culprits and runs of mlbisect."""
    axes, executor, _ = CASES[name]
    problem = manifest(axes, SMALLEST, MOST)
    sampler = AdaptiveSampler(executor, problem, seed_start=1000 * trial)
    found = find_culprits(executor, problem, sampler)
    return set(found.culprit_sets) if found.status == "culprit_found" else set(), found.runs_used


def ours(name: str, trial: int) -> tuple[Culprits, int]:
    """Proven causes and runs of `diagnose`; none if it refuses the failing run, or the reference."""
    axes, executor, _ = CASES[name]
    runs = 0

    def fails(levels: frozenset[str], seed: int) -> bool:
        nonlocal runs
        runs += 1
        changed = Configuration.from_axes(level.partition("=")[0] for level in levels)
        return executor.run(changed, 1000 * trial + seed).metric < BASELINE - SMALLEST / 2

    try:
        found = diagnose(fails, [0] * axes, 3, MOST)
    except InputError:
        return set(), runs
    proven = (changes for changes, claim in found.cause_claims.items() if claim.grade is Grade.PROVEN)
    return {frozenset(f"f{number}" for number in changes) for changes in proven}, found.runs


def row(name: str, noise: float) -> str:
    """One case: both searches, all trials."""
    CASES[name][1].noise_sd = noise
    columns = []
    for method in (ours, theirs):
        found = [method(name, trial) for trial in range(TRIALS)]
        right = mean(claimed == CASES[name][2] for claimed, _ in found)
        false = mean(bool(claimed - _acting(CASES[name][1])) for claimed, _ in found)
        columns += [f"{right:.0%}", f"{false:.0%}", f"{mean(runs for _, runs in found):.0f}"]
    return f"| {name} | {noise} | {' | '.join(columns)} |"


def _acting(executor: FakeExecutor) -> Culprits:
    return {frozenset({axis}) for axis in executor.effects} | set(executor.interactions)


def main() -> None:
    lines = [
        f"`python bench/search_mlbisect.py`: {TRIALS} trials per row, at most {MOST} runs each. `noise`: the standard",
        "deviation of the metric. nangrid also names the cures; mlbisect has none.",
        "",
        "| case | noise | nangrid: right | false | runs | mlbisect: right | false | runs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for noise in NOISES:
        for name in CASES:
            lines.append(row(name, noise))
            print(lines[-1], flush=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
