"""`diagnose`: search causes and cures between a failing and a training cell, with few cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nangrid.cell.config import to_override
from nangrid.cell.identity import level_fields
from nangrid.commands.compose import composed, key_of, with_run_levels
from nangrid.commands.exits import exit_code
from nangrid.commands.parser import make_parser
from nangrid.diagnosis.diagnose import diagnose
from nangrid.diagnosis.minimal_sets import MOST_CHANGES
from nangrid.diagnosis.oracle import DiagnosisProblem, Overrides
from nangrid.diagnosis.summary import tell
from nangrid.grid.local import LocalExecutor
from nangrid.grid.plan import CellPlan, plan_cell
from nangrid.grid.start_from import levels_of
from nangrid.records.cell import START_FROM
from nangrid.records.defaults import DIAGNOSE_OUT, HORIZON, SEEDS
from nangrid.records.errors import InputError
from nangrid.records.start_from import find_start

EPILOG = """\
python -m src.diagnose --failing dtype=fp16 init=zero --reference dtype=fp32 init=mean
python -m src.diagnose model=tiny data=glossary data.bos=false --failing init=zero dtype=fp16 --reference init=mean
python -m src.diagnose start_from=outputs/grid/cells/30e24def... --reference dtype=bf16 optim.lr=1e-4

What is given before --failing holds for all cells. A key that is given on one side only has its default on the
other. The search asks with the seed given (0) and short cells; what it finds is confirmed to the horizon with
--seeds of them. The cells are kept in out= (outputs/diagnose) and never run twice.

With start_from= all cells go on with that run, under its levels but for those of --reference; --failing may be left
out. Only what comes after that step is asked, with the run's own seed.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 with a diagnosis, 1 if a cell crashed, 2 if the two end points are none."""
    parser = make_parser("diagnose", "Search causes and cures between a failing and a training cell.", EPILOG)
    parser.add_argument("common", nargs="*", metavar="key=value", help="what all cells have")
    parser.add_argument("--failing", nargs="+", metavar="key=value", help="levels that fail (start_from: the run's)")
    parser.add_argument("--reference", nargs="+", required=True, metavar="key=value", help="levels that train")
    parser.add_argument("--n-jobs", type=int, default=1, help="cells side by side, where two can be")
    parser.add_argument("--seeds", type=int, help="seeds that must agree on what is found (3; start_from: 1)")
    asked = parser.parse_args(arguments)
    return exit_code(lambda: _diagnose(asked.common, asked.failing, asked.reference, asked.n_jobs, asked.seeds))


def _diagnose(
    common: list[str], failing: list[str] | None, reference: list[str], n_jobs: int, seeds: int | None
) -> None:
    problem = _question(common, failing, reference, n_jobs, seeds)
    found = diagnose(problem, _horizon(common), lambda line: print(line, flush=True))
    tell(found, problem, "python -m src.report")


def _question(
    common: list[str], failing: list[str] | None, reference: list[str], n_jobs: int, seeds: int | None
) -> DiagnosisProblem:
    run = _run_gone_on_with(common)
    if run is None and failing is None:
        raise InputError("--failing is missing: give levels that fail, or start_from= and a cell that did.")
    failing = failing or [own for override in reference for own in _run_levels(run or {}, key_of(override))]
    sides = [_by_key(side) for side in (failing, reference)]
    keys = [key for key in dict.fromkeys([*sides[0], *sides[1]]) if sides[0].get(key) != sides[1].get(key)]
    if not keys:
        raise InputError("--failing and --reference are the same cell: name what differs.")
    if len(keys) > MOST_CHANGES:
        raise InputError(f"{len(keys)} keys differ, at most {MOST_CHANGES} can be searched: fix some for all cells.")
    if twice := [key for key in keys if any(key_of(override) == key for override in common)]:
        raise InputError(f"{twice[0]} is given for all cells and for one side: give it to both sides, or to all cells.")
    shared = [override for key, overrides in sides[0].items() if key not in keys for override in overrides]
    changes = tuple((sides[0].get(key, ()), sides[1].get(key, ())) for key in keys)

    first = _whole_number("seed", [*common, *shared], default=(run or {}).get("seed", 0), least=0)
    seeds = seeds if seeds is not None else 1 if run else SEEDS
    if run and seeds != 1:
        raise InputError(f"--seeds {seeds} cannot be asked of start_from: a run that is gone on with has its own seed.")
    if seeds < 1:
        raise InputError(f"--seeds {seeds} is out of range: give a whole number of at least 1.")
    if "seed" in keys:
        raise InputError("--failing and --reference have different seeds: a seed is no level, give both the same.")

    def plan(levels: Sequence[Overrides], horizon: int, seed: int) -> CellPlan:
        own = [override for overrides in levels for override in overrides]
        fixed = [o for o in [*common, *shared] if key_of(o) not in ("horizon", "seed")]
        out = [] if any(key_of(o) == "out" for o in fixed) else [f"out={DIAGNOSE_OUT}"]
        overrides = with_run_levels([*fixed, *own, f"seed={seed}", f"horizon={horizon}", *out])
        title = " ".join([*own, *([f"seed={seed}"] if seed != first else [])])
        return replace(plan_cell(composed(overrides), overrides), title=title or "defaults")

    executor = LocalExecutor(n_jobs)
    executor.check()
    return DiagnosisProblem(changes, plan, executor, tuple(range(first, first + seeds)))


def _run_gone_on_with(common: Sequence[str]) -> dict[str, Any] | None:
    """The levels of the cell that start_from names; None without one, or where it is no cell's."""
    path = next((o.partition("=")[2] for o in common if key_of(o) == START_FROM), None)
    return None if path is None else levels_of(find_start(path))


def _run_levels(run: dict[str, Any], key: str) -> Overrides:
    """The run's own level of a group, with the fields that it overrode, or its value of a single key."""
    if key not in run:
        raise InputError(f"{key} is no key of the run that start_from goes on with: give --failing too.")
    fixed = level_fields(key, str(run[key])) if "." not in key and key != "seed" else {}
    own = [field for field in fixed if run.get(f"{key}.{field}", fixed[field]) != fixed[field]]
    return tuple(to_override(name, run[name]) for name in (key, *(f"{key}.{field}" for field in own)))


def _by_key(side: Sequence[str]) -> dict[str, Overrides]:
    """The overrides of a side by factor: a group's level, and the fields of it that are given beside it."""
    found: dict[str, Overrides] = {}
    groups = {key_of(override) for override in side}
    for override in side:
        key = key_of(override)
        key = key.split(".")[0] if key.split(".")[0] in groups else key
        found[key] = (*found.get(key, ()), override)
    return found


def _horizon(common: list[str]) -> int:
    return _whole_number("horizon", common, default=HORIZON, least=1)


def _whole_number(key: str, overrides: list[str], default: int, least: int) -> int:
    asked = next((o.partition("=")[2] for o in reversed(overrides) if key_of(o) == key), str(default))
    if not asked.isdigit() or int(asked) < least:
        raise InputError(f"{key}={asked} does not fit: {key} takes a whole number of at least {least}.")
    return int(asked)
