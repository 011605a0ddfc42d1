"""`diagnose`: search causes and cures between a failing and a training cell, with few cells."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace

from nangrid.commands.compose import composed, key_of
from nangrid.commands.exits import exit_code
from nangrid.grid.diagnose import Diagnosis, diagnose
from nangrid.grid.drill import Drilled
from nangrid.grid.laboratory import Overrides, Question
from nangrid.grid.plan import CellPlan, plan_cell
from nangrid.grid.schedule import Isolated
from nangrid.grid.search import Rate
from nangrid.records.errors import InputError
from nangrid.search.minimal import MOST_CHANGES, Changes, NotMonotoneError

EPILOG = """\
python -m src.diagnose --failing dtype=fp16 init=zero --reference dtype=fp32 init=mean
python -m src.diagnose model=tiny data=glossary data.bos=false --failing init=zero dtype=fp16 --reference init=mean

What is given before --failing holds for all cells. A key that is given on one side only has its default on the
other. The search asks with the seed given (0) and short cells; what it finds is confirmed to the horizon with
--seeds of them. The cells are kept in out= (outputs/diagnose) and never run twice.
"""
OUT = "outputs/diagnose"
HORIZON = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 with a diagnosis, 1 if a cell crashed, 2 if the two end points are none."""
    parser = ArgumentParser(
        prog="diagnose",
        description=__doc__,
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("common", nargs="*", metavar="key=value", help="what all cells have")
    parser.add_argument("--failing", nargs="+", required=True, metavar="key=value", help="levels that fail")
    parser.add_argument("--reference", nargs="+", required=True, metavar="key=value", help="levels that train")
    parser.add_argument("--n-jobs", type=int, default=1, help="cells side by side, where two can be")
    parser.add_argument("--seeds", type=int, default=3, help="seeds that must agree on what is found (3)")
    asked = parser.parse_args(arguments)
    return exit_code(lambda: _diagnose(asked.common, asked.failing, asked.reference, asked.n_jobs, asked.seeds))


def _diagnose(common: list[str], failing: list[str], reference: list[str], n_jobs: int, seeds: int) -> None:
    question = _question(common, failing, reference, n_jobs, seeds)
    _tell(diagnose(question, _horizon(common), lambda line: print(line, flush=True)), question)


def _question(common: list[str], failing: list[str], reference: list[str], n_jobs: int, seeds: int) -> Question:
    sides = [{key_of(override): override for override in side} for side in (failing, reference)]
    keys = [key for key in dict.fromkeys([*sides[0], *sides[1]]) if sides[0].get(key) != sides[1].get(key)]
    if not keys:
        raise InputError("--failing and --reference are the same cell: name what differs.")
    if len(keys) > MOST_CHANGES:
        raise InputError(f"{len(keys)} keys differ, at most {MOST_CHANGES} can be searched: fix some for all cells.")
    if twice := [key for key in keys if any(key_of(override) == key for override in common)]:
        raise InputError(f"{twice[0]} is given for all cells and for one side: give it to both sides, or to all cells.")
    shared = [override for key, override in sides[0].items() if key not in keys]
    changes = tuple((_levels(sides[0], key), _levels(sides[1], key)) for key in keys)

    first = _whole_number("seed", [*common, *shared], default=0, least=0)
    if seeds < 1:
        raise InputError(f"--seeds {seeds} is out of range: give a whole number of at least 1.")
    if "seed" in keys:
        raise InputError("--failing and --reference have different seeds: a seed is no level, give both the same.")

    def plan(levels: Sequence[Overrides], horizon: int, seed: int) -> CellPlan:
        own = [override for overrides in levels for override in overrides]
        fixed = [o for o in [*common, *shared] if key_of(o) not in ("horizon", "seed")]
        out = [] if any(key_of(o) == "out" for o in fixed) else [f"out={OUT}"]
        overrides = [*fixed, *own, f"seed={seed}", f"horizon={horizon}", *out]
        title = " ".join([*own, *([f"seed={seed}"] if seed != first else [])])
        return replace(plan_cell(composed(overrides), overrides), title=title or "defaults")

    crew = Isolated(n_jobs)
    crew.check()
    return Question(changes, plan, crew, tuple(range(first, first + seeds)))


def _levels(side: dict[str, str], key: str) -> Overrides:
    return (side[key],) if key in side else ()


def _horizon(common: list[str]) -> int:
    return _whole_number("horizon", common, default=HORIZON, least=1)


def _whole_number(key: str, overrides: list[str], default: int, least: int) -> int:
    asked = next((o.partition("=")[2] for o in reversed(overrides) if key_of(o) == key), str(default))
    if not asked.isdigit() or int(asked) < least:
        raise InputError(f"{key}={asked} does not fit: {key} takes a whole number of at least {least}.")
    return int(asked)


def _tell(diagnosis: Diagnosis, question: Question) -> None:
    total = 2 ** len(question.changes)
    counted = f"{diagnosis.cells} of {total} combinations, {diagnosis.runs} runs"
    print(f"\n{diagnosis.event} at step {diagnosis.onset}, by {counted}:")
    if diagnosis.not_monotone:
        print(f"  {_clash(diagnosis.not_monotone, question)}: all {total} were run")
    if diagnosis.stochastic:
        print("  seeds disagree: a cause is what brings it about in any of them, a cure what trains in all")
    causes = diagnosis.causes.causes
    for cause in causes:
        print(f"  enough: {_failing(question, cause)} ({_rate(diagnosis.met[cause], 'meet it')})")
        for smaller in (s for s in diagnosis.causes.left_out if s < cause):
            print(f"    not decided: whether {_failing(question, smaller)} alone would be enough")
        if drilled := diagnosis.drilled.get(cause):
            _tell_fields(drilled)
    shared = frozenset.intersection(*causes)
    if len(causes) > 1 and shared:
        print(f"  necessary (in every cause): {_failing(question, shared)}")
    for cure in diagnosis.cures.cures:
        rate = _rate(diagnosis.trained[cure], f"train to step {diagnosis.horizon}")
        print(f"  cure: {_reference(question, cure)} ({rate})")


def _tell_fields(drilled: Drilled) -> None:
    total = 2 ** len(drilled.question.changes)
    for fields in drilled.found.causes:
        print(f"    of its fields, enough: {_failing(drilled.question, fields)} (by {drilled.cells} of {total} cells)")


def _rate(rate: Rate, does: str) -> str:
    ids = ", ".join(cell_id[:8] for cell_id in rate.cells)
    return f"{rate.met} of {rate.seeds} seeds {does}, {ids}" if rate.seeds > 1 else f"{does}: {ids}"


def _clash(clash: NotMonotoneError, question: Question) -> str:
    return f"not monotone ({_failing(question, clash.smaller)} meets it, {_failing(question, clash.larger)} does not)"


def _failing(question: Question, changes: Changes) -> str:
    return " ".join(_typed(question.changes[i][0], question.changes[i][1]) for i in sorted(changes))


def _reference(question: Question, changes: Changes) -> str:
    return " ".join(_typed(question.changes[i][1], question.changes[i][0]) for i in sorted(changes))


def _typed(levels: Overrides, other: Overrides) -> str:
    return " ".join(levels) or f"the default of {key_of(other[0])}"
