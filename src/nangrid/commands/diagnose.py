"""`diagnose`: search causes and cures between a failing and a training cell, with few cells."""

from __future__ import annotations

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace

from nangrid.commands.compose import composed, key_of
from nangrid.commands.exits import exit_code
from nangrid.grid.diagnose import Diagnosis, Overrides, Question, diagnose
from nangrid.grid.plan import CellPlan, plan_cell
from nangrid.grid.schedule import Isolated
from nangrid.records.errors import InputError
from nangrid.search.minimal import MOST_CHANGES, Changes

EPILOG = """\
python -m src.diagnose --failing dtype=fp16 init=zero --reference dtype=fp32 init=mean
python -m src.diagnose model=tiny data=glossary data.bos=false --failing init=zero dtype=fp16 --reference init=mean

What is given before --failing holds for all cells. A key that is given on one side only has its default on the
other. The cells are kept in out= (outputs/diagnose) and never run twice.
"""
OUT = "outputs/diagnose"
HORIZON = "16"


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
    asked = parser.parse_args(arguments)
    return exit_code(lambda: _diagnose(asked.common, asked.failing, asked.reference, asked.n_jobs))


def _diagnose(common: list[str], failing: list[str], reference: list[str], n_jobs: int) -> None:
    question = _question(common, failing, reference, n_jobs)
    _tell(diagnose(question, _horizon(common), lambda line: print(line, flush=True)), question)


def _question(common: list[str], failing: list[str], reference: list[str], n_jobs: int) -> Question:
    sides = [{key_of(override): override for override in side} for side in (failing, reference)]
    keys = [key for key in dict.fromkeys([*sides[0], *sides[1]]) if sides[0].get(key) != sides[1].get(key)]
    if not keys:
        raise InputError("--failing and --reference are the same cell: name what differs.")
    if len(keys) > MOST_CHANGES:
        raise InputError(f"{len(keys)} keys differ, at most {MOST_CHANGES} can be searched: fix some for all cells.")
    shared = [override for key, override in sides[0].items() if key not in keys]
    changes = tuple((_levels(sides[0], key), _levels(sides[1], key)) for key in keys)

    def plan(levels: Sequence[Overrides], horizon: int) -> CellPlan:
        own = [override for overrides in levels for override in overrides]
        fixed = [o for o in [*common, *shared] if key_of(o) != "horizon"]
        out = [] if any(key_of(o) == "out" for o in fixed) else [f"out={OUT}"]
        overrides = [*fixed, *own, f"horizon={horizon}", *out]
        return replace(plan_cell(composed(overrides), overrides), title=" ".join(own) or "defaults")

    crew = Isolated(n_jobs)
    crew.check()
    return Question(changes, plan, crew)


def _levels(side: dict[str, str], key: str) -> Overrides:
    return (side[key],) if key in side else ()


def _horizon(common: list[str]) -> int:
    asked = next((o.partition("=")[2] for o in reversed(common) if key_of(o) == "horizon"), HORIZON)
    if not asked.isdigit() or int(asked) < 1:
        raise InputError(f"horizon={asked} does not fit: horizon takes a whole number of at least 1.")
    return int(asked)


def _tell(diagnosis: Diagnosis, question: Question) -> None:
    total = 2 ** len(question.changes)
    print(f"\n{diagnosis.event} at step {diagnosis.onset}, by {len(diagnosis.cells)} cells of {total}:")
    if diagnosis.not_monotone:
        print(f"  {_clash(diagnosis, question)}: all {total} were run")
    causes = diagnosis.causes.causes
    for cause in causes:
        print(f"  enough: {_failing(question, cause)} ({_id(diagnosis, cause)})")
    shared = frozenset.intersection(*causes)
    if len(causes) > 1 and shared:
        print(f"  necessary (in every cause): {_failing(question, shared)}")
    for cure in diagnosis.cures.cures:
        cell = _id(diagnosis, question.everything - cure)
        print(f"  cure: {_reference(question, cure)} ({cell}, trains to step {diagnosis.horizon})")


def _clash(diagnosis: Diagnosis, question: Question) -> str:
    clash = diagnosis.not_monotone
    assert clash is not None
    return f"not monotone ({_failing(question, clash.smaller)} meets it, {_failing(question, clash.larger)} does not)"


def _failing(question: Question, changes: Changes) -> str:
    return " ".join(_typed(question.changes[i][0], question.changes[i][1]) for i in sorted(changes))


def _reference(question: Question, changes: Changes) -> str:
    return " ".join(_typed(question.changes[i][1], question.changes[i][0]) for i in sorted(changes))


def _typed(levels: Overrides, other: Overrides) -> str:
    return " ".join(levels) or f"the default of {key_of(other[0])}"


def _id(diagnosis: Diagnosis, changes: Changes) -> str:
    return diagnosis.cells[changes].record.cell_id[:8]
