"""`diagnose`: searches the causes and cures that separate a failing run from one that trains."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nangrid.cell.config import SCIENTIFIC, to_override
from nangrid.cell.identity import level_fields
from nangrid.cell.interpreter import PYTHON
from nangrid.commands.compose import composed, key_of, with_run_levels
from nangrid.commands.exits import exit_code
from nangrid.commands.parser import command_line, make_parser
from nangrid.commands.streams import words_aside
from nangrid.diagnosis.diagnose import diagnose
from nangrid.diagnosis.oracle import DiagnosisProblem, Overrides, cell_title, check_max_runs
from nangrid.diagnosis.summary import print_summary
from nangrid.grid.local import LocalExecutor
from nangrid.grid.plan import CellPlan, plan_cell
from nangrid.grid.start_from import levels_of
from nangrid.records.cell import START_FROM
from nangrid.records.defaults import DIAGNOSE_OUT, HORIZON, MAX_RUNS, SEEDS
from nangrid.records.diagnosis import DiagnosisRecord
from nangrid.records.errors import InputError
from nangrid.records.output.printed import say_json
from nangrid.records.output.results import DiagnoseResult
from nangrid.records.safety.text import say
from nangrid.records.start_from import find_start

EPILOG = """\
python -m src.diagnose --failing dtype=fp16 init=zero --reference dtype=fp32 init=mean
python -m src.diagnose model=tiny data=glossary data.bos=false \\
    --failing init=zero dtype=fp16 --reference init=mean
python -m src.diagnose start_from=outputs/grid/cells/30e24def... \\
    --reference dtype=bf16 optim.lr=1e-4

Overrides before --failing apply to all runs. A key given on one side only
takes its default on the other. The search uses one seed (seed=0) and short
runs; its answers are confirmed at the full horizon with --seeds of them. If
the seeds disagree, each combination runs with as many seeds as its answer
takes. After --max-runs, what is left is said to be undecided. Runs are kept in
out= (outputs/diagnose) and never run twice.

--between optim.lr=2e-5,6e-5 searches levels between the two sides as well.

With start_from= all runs resume that run, under its levels except those of
--reference; --failing may be left out. Results hold from that step on, for the
seed of that run.
"""


@dataclass(frozen=True)
class Sides:
    """The overrides of the failing cell and of the reference, split by what they share."""

    shared: list[str]
    """Overrides of all cells."""
    changes: tuple[tuple[Overrides, Overrides], ...]
    """Per key that differs: the failing side's overrides and the reference's."""
    keys: list[str]


@dataclass(frozen=True)
class CommandLinePlanner:
    """Plans cells that share some overrides and differ in others."""

    shared: Sequence[str]
    first_seed: int

    def plan(self, levels: Sequence[Overrides], horizon: int, seed: int) -> CellPlan:
        """The cell with these levels; InputError for an invalid combination."""
        fixed = [override for override in self.shared if key_of(override) not in ("horizon", "seed")]
        out = [] if any(key_of(override) == "out" for override in fixed) else [f"out={DIAGNOSE_OUT}"]
        chosen = [override for overrides in levels for override in overrides]
        overrides = with_run_levels([*fixed, *chosen, f"seed={seed}", f"horizon={horizon}", *out])
        title = cell_title(levels, seed, self.first_seed) or "defaults"
        return replace(plan_cell(composed(overrides), overrides), title=title)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 with a diagnosis, 1 if a cell crashed, 2 for input that cannot be searched."""
    parser = make_parser("diagnose", "Search causes and cures between a failing run and one that trains.", EPILOG)
    parser.add_argument("common", nargs="*", metavar="key=value", help="overrides shared by all runs")
    parser.add_argument("--failing", nargs="+", metavar="key=value", help="levels that fail (start_from: the run's)")
    parser.add_argument("--reference", nargs="+", required=True, metavar="key=value", help="levels that train")
    parser.add_argument("--between", nargs="+", default=[], metavar="key=a,b", help="levels between the two sides")
    parser.add_argument("--n-jobs", type=int, default=1, help="runs in parallel (1)")
    parser.add_argument("--seeds", type=int, help="number of seeds that must agree (3; start_from: 1)")
    parser.add_argument("--max-runs", type=int, default=MAX_RUNS, help=f"runs after which the search ends ({MAX_RUNS})")
    parser.add_argument("--json", action="store_true", help="print JSON; words go to standard error")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _main(options))


def _main(options: Namespace) -> None:
    with words_aside(options.json):
        found = _diagnose(options)
    if options.json:
        from nangrid.reporting.answer import answer_about  # pandas takes a second

        grid, record = found
        answer = answer_about(grid, with_text=False)
        say_json(DiagnoseResult(grid, record.failing, record.reference, record.lines, record.claims, answer))


def _diagnose(options: Namespace) -> tuple[str, DiagnosisRecord]:
    """The directory in which the runs are kept, and what they show."""
    problem = problem_of(options.common, options.failing, options.reference, options.n_jobs, options.seeds)
    between = levels_between(options.between, problem)
    problem = replace(problem, max_runs=options.max_runs, between=between)
    check_max_runs(problem.max_runs)
    horizon = _whole_number("horizon", options.common, default=HORIZON, least=1)
    diagnosis = diagnose(problem, horizon, say)
    return print_summary(diagnosis, problem, command_line("report"))


def problem_of(
    common: list[str], failing: list[str] | None, reference: list[str], n_jobs: int, seeds: int | None
) -> DiagnosisProblem:
    """The problem that the command line poses; InputError if it cannot be searched."""
    run = _resumed_levels(common)
    if run is None and failing is None:
        raise InputError("--failing is missing: give levels that fail, or start_from= and a cell that did.")
    failing = failing or [level for override in reference for level in _run_levels(run or {}, key_of(override))]
    sides = _sides(common, failing, reference)
    _check_sides(sides, common)
    first_seed = _whole_number("seed", sides.shared, default=(run or {}).get("seed", 0), least=0)
    planner = CommandLinePlanner(sides.shared, first_seed)
    executor = LocalExecutor(n_jobs)
    executor.check()
    number = _number_of_seeds(seeds, resumed=run is not None)
    return DiagnosisProblem(sides.changes, planner.plan, executor, tuple(range(first_seed, first_seed + number)))


def levels_between(given: Sequence[str], problem: DiagnosisProblem) -> tuple[tuple[Overrides, ...], ...]:
    """Per factor that differs, its levels between the two sides; InputError for a key that does not differ."""
    levels = {key_of(override): override.partition("=")[2].split(",") for override in given}
    keys = [key_of((failing or reference)[0]) for failing, reference in problem.changes]
    if unknown := [key for key in levels if key not in keys]:
        raise InputError(
            f"--between {unknown[0]} does not differ between the two sides: name one of {', '.join(keys)}."
        )
    return tuple(tuple((f"{key}={level}",) for level in levels.get(key, [])) for key in keys)


def _sides(common: list[str], failing: list[str], reference: list[str]) -> Sides:
    by_key = [_by_key(side) for side in (failing, reference)]
    keys = [key for key in dict.fromkeys([*by_key[0], *by_key[1]]) if by_key[0].get(key) != by_key[1].get(key)]
    shared = [override for key, overrides in by_key[0].items() if key not in keys for override in overrides]
    changes = tuple((by_key[0].get(key, ()), by_key[1].get(key, ())) for key in keys)
    return Sides([*common, *shared], changes, keys)


def _check_sides(sides: Sides, common: list[str]) -> None:
    if not sides.keys:
        raise InputError("--failing and --reference are the same cell: name what differs.")
    if twice := [key for key in sides.keys if any(key_of(override) == key for override in common)]:
        raise InputError(f"{twice[0]} is given for all runs and for one side: give it to both sides, or to all runs.")
    if "seed" in sides.keys:
        raise InputError("--failing and --reference differ in the seed, but a seed is not a level: give both the same.")
    for key in sides.keys:
        if key.split(".")[0] not in (*SCIENTIFIC, PYTHON):
            raise InputError(f"{key} is not a level, and all runs share it: give {key}=... before --failing.")


def _number_of_seeds(seeds: int | None, resumed: bool) -> int:
    if resumed and seeds not in (None, 1):
        raise InputError(f"--seeds {seeds} does not go with start_from, because a resumed run has its own seed.")
    number = seeds if seeds is not None else 1 if resumed else SEEDS
    if number < 1:
        raise InputError(f"--seeds {seeds} is out of range: give a whole number of at least 1.")
    return number


def _resumed_levels(common: Sequence[str]) -> dict[str, Any] | None:
    """Levels of the cell that start_from names; None without start_from, or if it names no cell."""
    path = next((o.partition("=")[2] for o in common if key_of(o) == START_FROM), None)
    return None if path is None else levels_of(find_start(path))


def _run_levels(run: dict[str, Any], key: str) -> Overrides:
    """The run's level of a group, with the fields that it overrode, or its value of a single key."""
    if key not in run:
        raise InputError(f"{key} is not a key of the run that start_from resumes: give --failing too.")
    fixed = level_fields(key, str(run[key])) if "." not in key and key != "seed" else {}
    overridden = [field for field in fixed if run.get(f"{key}.{field}", fixed[field]) != fixed[field]]
    return tuple(to_override(name, run[name]) for name in (key, *(f"{key}.{field}" for field in overridden)))


def _by_key(side: Sequence[str]) -> dict[str, Overrides]:
    """Overrides of a side by factor: a group's level, together with those of its fields that are given too."""
    by_key: dict[str, Overrides] = {}
    groups = {key_of(override) for override in side}
    for override in side:
        key = key_of(override)
        key = key.split(".")[0] if key.split(".")[0] in groups else key
        by_key[key] = (*by_key.get(key, ()), override)
    return by_key


def _whole_number(key: str, overrides: Sequence[str], default: int, least: int) -> int:
    value = next((o.partition("=")[2] for o in reversed(overrides) if key_of(o) == key), str(default))
    if not value.isdigit() or int(value) < least:
        raise InputError(f"{key}={value} is out of range: give a whole number of at least {least}.")
    return int(value)
