"""What happens between a command line that composes and the table at its end?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from nangrid.grid.failure import LOG
from nangrid.grid.isolation import warm_up
from nangrid.grid.plan import CellPlan, is_done, one_grid, plan_cell
from nangrid.grid.schedule import GridOutcome, run_grid
from nangrid.records.cell import RESULT, CellRecord, read_record
from nangrid.records.errors import InputError, RecordError
from nangrid.records.grid import GridDirectory
from nangrid.records.history import read_history


class CellsFailedError(Exception):
    """Some cells crashed; the message names each and its log."""


def launch(
    composed: Iterable[tuple[dict[str, Any], list[str]]],
    *,
    n_jobs: Any = 1,
    timeout_s: Any = None,
    single: bool = False,
) -> None:
    """Check every cell (a composed config and the overrides that led to it), run them, say what came out.

    Nothing is created before all are checked. InputError if one cannot be run as asked, CellsFailedError if
    one crashed, both after the others have ended. `single` ends with a cell's summary instead of a table.
    """
    _check_launcher(n_jobs, timeout_s)
    plans = one_grid(_plan(composed))
    if plans[0].config.dry_run:
        _list(plans)
        return
    grid = GridDirectory.open(plans[0].config.out)
    outcome = run_grid(plans, grid, n_jobs, timeout_s)
    records = [outcome.records[plan.cell_id] for plan in plans if plan.cell_id in outcome.records]
    if single and records:
        _show_cell(records[0], plans[0])
    elif records:
        _show_grid(grid, records)
    _raise_failures(plans, outcome)


def _check_launcher(n_jobs: Any, timeout_s: Any) -> None:
    if not isinstance(n_jobs, int) or n_jobs < 1:
        raise InputError(f"hydra.launcher.n_jobs={n_jobs} is out of range: give a whole number of at least 1.")
    if timeout_s is None:
        return
    if not isinstance(timeout_s, int | float) or not math.isfinite(timeout_s) or timeout_s <= 0:
        raise InputError(f"hydra.launcher.timeout_s={timeout_s} is out of range: give seconds above 0, or null.")


def _plan(composed: Iterable[tuple[dict[str, Any], list[str]]]) -> list[CellPlan]:
    plans: list[CellPlan] = []
    for config, overrides in composed:
        plan = plan_cell(config, overrides)
        plans.append(plan)
        if not plan.config.dry_run and not (plan.directory() / RESULT).exists():
            warm_up()  # the imports go on while the other cells are composed
    if not plans:
        raise InputError("The sweep asks for no cell: give every swept key at least one value.")
    return plans


def _list(plans: list[CellPlan]) -> None:
    for plan in plans:
        record = read_record(plan.directory())
        state = record.status if record and is_done(plan, record) else "to run"
        print(f"{plan.cell_id}  {state:9}  {plan.title}")


def _show_cell(record: CellRecord, plan: CellPlan) -> None:
    from nangrid.records.autopsy import read_autopsy
    from nangrid.reporting.explain import explain
    from nangrid.reporting.terminal import cell_summary

    try:
        history = read_history(plan.directory())
    except RecordError:
        history = None  # a cell that crashed has none
    print(cell_summary(record, history, plan.directory()))
    if record.autopsy and (autopsy := read_autopsy((plan.directory() / record.autopsy).parent)):
        print(explain(autopsy))


def _show_grid(grid: GridDirectory, records: list[CellRecord]) -> None:
    """Print the cells asked for; the files hold all of the directory's."""
    from rich.console import Console

    from nangrid.analysis.onsets import onset_pivot, onset_table, write_onsets
    from nangrid.reporting.terminal import grid_summary

    everything, untrusted = grid.records()
    autopsies = grid.autopsies(everything)
    write_onsets(grid, onset_table(everything, autopsies))
    table = onset_table(records, autopsies)
    console = Console()
    console.print(grid_summary(table, onset_pivot(table)))
    for line in [*(f"left out: {error}" for error in untrusted), f"table: {grid.path / 'onsets.csv'}"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _raise_failures(plans: list[CellPlan], outcome: GridOutcome) -> None:
    if outcome.refusals:
        raise InputError("\n".join(dict.fromkeys(outcome.refusals.values())))
    failed = [plan for plan in plans if outcome.records[plan.cell_id].error]
    if failed:
        names = "\n".join(f"  {plan.title}: {plan.directory() / LOG}" for plan in failed)
        raise CellsFailedError(
            f"{len(failed)} of {len(plans)} cells crashed (resume=errored runs them again):\n{names}"
        )
