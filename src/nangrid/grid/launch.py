"""Plans the composed cells, runs them, and prints the outcome: from the command line to the final table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from nangrid.cell.config import TrackerConfig
from nangrid.grid.collect import GridOutcome
from nangrid.grid.plan import CellPlan, is_done, one_grid, plan_cell
from nangrid.records.cell import LOG, RESULT, CellRecord
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory, read_or_report
from nangrid.records.pace import format_duration, pace
from nangrid.records.safety.text import say

if TYPE_CHECKING:
    from nangrid.reporting.finished import Judged


class CellsFailedError(Exception):
    """Some cells crashed or are unfinished; the message names each, with its log or the reason."""


class Executor(Protocol):
    """What runs the cells: this machine or a cluster."""

    @property
    def max_parallel(self) -> int:
        """Cells that run in parallel."""

    def check(self) -> None:
        """Raise InputError if it cannot run cells as requested."""

    def warm_up(self) -> None:
        """Prepare to run cells, which are certain to come; InputError if none can run from here."""

    def run(self, plans: Sequence[CellPlan], grid: GridDirectory) -> GridOutcome:
        """Run the cells that are not done; return when all have ended."""


@dataclass(frozen=True)
class Finished:
    """A grid that has run, and the records of the cells that were requested."""

    grid: GridDirectory
    records: Sequence[CellRecord]
    judged: Judged | None
    """What all runs of the grid show, where that was printed."""


_COLLECTED: ContextVar[list[Finished] | None] = ContextVar("_COLLECTED", default=None)


@contextmanager
def collecting() -> Iterator[list[Finished]]:
    """Within the block each grid that has run is added to the list; Hydra hands no result of a launcher back."""
    finished: list[Finished] = []
    token = _COLLECTED.set(finished)
    try:
        yield finished
    finally:
        _COLLECTED.reset(token)


def launch(composed: Iterable[tuple[dict[str, Any], list[str]]], executor: Executor, *, single: bool = False) -> None:
    """Check every cell (a composed config and the overrides that led to it), run them, and print the outcome.

    Nothing is created before all are checked. InputError if a cell cannot be run as requested, CellsFailedError if
    one crashed or is unfinished, both after the others have ended. `single` prints the cell's summary, not a table.
    """
    executor.check()
    plans = one_grid(_plan(composed, executor))
    if plans[0].config.dry_run:
        _list(plans, executor)
        return
    grid = GridDirectory.open(plans[0].config.out)
    outcome = executor.run(plans, grid)
    if not (grid.path / "cells").is_dir():
        raise CellsFailedError(f"{grid.path} was deleted while its cells ran: run the same command again.")
    records = [outcome.records[plan.cell_id] for plan in plans if plan.cell_id in outcome.records]
    from nangrid.reporting.finished import print_cell, print_grid  # pandas and rich take a second

    judged = None
    if single and records:
        print_cell(records[0], plans[0].directory())
    elif records:
        judged = print_grid(grid, records)
        if outcome.ran:
            _track(plans[0].cell_config.tracker, grid, judged)
    if (collected := _COLLECTED.get()) is not None:
        collected.append(Finished(grid, records, judged))
    _raise_failures(plans, outcome)


def _track(tracker: TrackerConfig, grid: GridDirectory, judged: Judged | None) -> None:
    """Log the grid's answer as one more W&B run, next to those of its cells."""
    if tracker.name == "none" or judged is None:
        return
    from nangrid.reporting.tracked import track_grid

    track_grid(grid, judged, mode=tracker.mode, project=tracker.project, entity=tracker.entity)


def _plan(composed: Iterable[tuple[dict[str, Any], list[str]]], executor: Executor) -> list[CellPlan]:
    plans: list[CellPlan] = []
    for config, overrides in composed:
        plan = plan_cell(config, overrides)
        plans.append(plan)
        if not plan.config.dry_run and not (plan.directory() / RESULT).exists():
            executor.warm_up()
    if not plans:
        raise InputError("The sweep has no cells: give every swept key at least one value.")
    return plans


def _list(plans: list[CellPlan], executor: Executor) -> None:
    records, to_run = [], []
    for plan in plans:
        record = _record(plan)
        done = record is not None and is_done(plan, record)
        records += [record] if record else []
        to_run += [] if done else [plan]
        say(f"{plan.cell_id}  {record.status if record and done else 'to run':9}  {plan.title}")
    say(f"{len(plans)} cells, {len(to_run)} to run{_estimate(to_run, records, executor)}")


def _record(plan: CellPlan) -> CellRecord | None:
    """The cell's record; None if it has none, or a damaged one, which is reported."""
    return read_or_report(plan.directory(), lambda error: say(f"{plan.title} would run again: {error}", error=True))


def _estimate(to_run: list[CellPlan], records: list[CellRecord], executor: Executor) -> str:
    paces = [(pace(plan.cell_config.model.name, records), plan.config.horizon) for plan in to_run]
    known = [(expected, horizon) for expected, horizon in paces if expected]
    if not to_run or len(known) < len(to_run):
        return "" if not to_run else "; no estimate until one run of this model has finished"
    max_parallel = min(executor.max_parallel, len(to_run))
    total = sum(expected.cell_seconds(horizon) for expected, horizon in known) / max_parallel
    return f": at most about {format_duration(total)}, {max_parallel} in parallel ({known[0][0].source})"


def _raise_failures(plans: list[CellPlan], outcome: GridOutcome) -> None:
    if outcome.refusals:
        raise InputError("\n".join(dict.fromkeys(outcome.refusals.values())))
    failed = [p for p in plans if p.cell_id in outcome.records and outcome.records[p.cell_id].error]
    stopped = [p for p in plans if p.cell_id in outcome.stopped]
    lines = []
    if failed:
        lines.append(f"{len(failed)} of {len(plans)} cells crashed (resume=errored runs them again):")
        lines += [f"  {plan.title}: {plan.directory() / LOG}" for plan in failed]
    if stopped:
        lines.append(f"{len(stopped)} of {len(plans)} cells are unfinished (run the same command again to resume):")
        lines += [f"  {plan.title}: {outcome.stopped[plan.cell_id]}" for plan in stopped]
    if lines:
        raise CellsFailedError("\n".join(lines))
