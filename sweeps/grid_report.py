"""Writes a grid's answer as a W&B report: the verdict, the onset map, and a link to each run.

    python sweeps/grid_report.py outputs/default --entity ENTITY --project nangrid
    python sweeps/grid_report.py outputs/default --entity ENTITY --project nangrid --print

The first saves the report to the server and prints its address. The second prints it as JSON and needs no server.
The text of the data is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from urllib.parse import quote

import wandb_workspaces.reports.v2 as wr

from nangrid.analysis.evidence import Judged, judge
from nangrid.analysis.onsets import factor_columns, onset_table
from nangrid.commands.exits import exit_code
from nangrid.records.grid import GridDirectory
from nangrid.reporting.answer import as_markdown
from nangrid.reporting.answer.of_grid import of_grid
from nangrid.tracking.wandb_run import run_id


def report(directory: str, entity: str, project: str) -> wr.Report:
    """The report of a grid; InputError if the directory holds no grid."""
    grid = GridDirectory.at(directory)
    judged = judge(grid)
    answer = of_grid(grid, judged=judged, with_text=False)
    site = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").rstrip("/")
    runs = f"{site}/{quote(entity)}/{quote(project)}"
    return wr.Report(
        entity=entity,
        project=project,
        title=f"nangrid: {grid.grid_id}",
        description=answer.headline,
        blocks=[
            wr.MarkdownBlock(as_markdown(answer)),
            wr.H2("Onsets"),
            wr.MarkdownBlock("\n".join(_onsets(judged, grid.grid_id, f"{runs}/runs"))),
            wr.MarkdownBlock(f"[All runs of this grid]({runs}/groups/{quote(grid.grid_id)})"),
        ],
    )


def _onsets(judged: Judged, grid_id: str, runs: str) -> Iterator[str]:
    """One row per cell: the factors that vary, the onset, and the run."""
    table = onset_table(judged.records, judged.autopsies)
    factors = factor_columns(table)
    yield f"| {' | '.join(map(_text, factors))} | onset | mechanism | run |"
    yield f"| {' | '.join('---' for _ in factors)} | --- | --- | --- |"
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        cell_id = str(row["cell_id"])
        onset = f"step {row['onset_step']} ({row['onset_clock']})" if row["onset_step"] is not None else row["status"]
        levels = " | ".join(_text(row[factor]) for factor in factors)
        run = f"[{cell_id[:8]}]({runs}/{run_id(grid_id, cell_id)})"
        yield f"| {levels} | {onset} | {_text(row['mechanism'] or '')} | {run} |"


def _text(value: object) -> str:
    """Text that stays in its column."""
    return " ".join(str(value).split()).replace("|", "\\|")


def main() -> int:
    """Save the report, or print it. Exit code: 2 if the directory holds no grid."""
    parser = argparse.ArgumentParser(description="Write a grid's answer as a W&B report.")
    parser.add_argument("grid", help="directory of the grid")
    parser.add_argument("--entity", required=True, help="user or team")
    parser.add_argument("--project", default="nangrid")
    parser.add_argument("--print", action="store_true", help="print the report instead of saving it")
    options = parser.parse_args()
    return exit_code(lambda: _main(options))


def _main(options: argparse.Namespace) -> None:
    made = report(options.grid, options.entity, options.project)
    if options.print:
        print(json.dumps(json.loads(made._to_model().model_dump_json(exclude_none=True)), indent=1, sort_keys=True))
    else:
        print(made.save().url)


if __name__ == "__main__":
    sys.exit(main())
