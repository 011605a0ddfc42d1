"""Logs the answer of a grid as one more W&B run, in the group of its cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nangrid.tracking.wandb_run import WandbRun, finish_run, run_id, start_run


def log_grid(
    *,
    mode: str,
    project: str,
    entity: str | None,
    directory: Path,
    grid_id: str,
    verdict: Mapping[str, str],
    onsets: Mapping[str, Mapping[str, Any]],
) -> None:
    """Show the verdict in the summary, and the onsets as a table with a link to the run of each cell.

    `mode` is offline or online; W&B's files go to `directory`/wandb. `onsets` has the row of each cell by its cell_id;
    all have the same columns. A server that refuses or does not answer costs a warning, never the grid.
    """

    def show(run: Any) -> None:
        from wandb import Table

        run.summary.update(dict(verdict))
        site = run.url.rsplit("/", 1)[0] + "/" if run.url else ""
        columns = [*next(iter(onsets.values()), {}), "run"]
        rows = [[*row.values(), f"{site}{run_id(grid_id, cell_id)}"] for cell_id, row in onsets.items()]
        run.log({"onsets": Table(columns=columns, data=rows)})
        finish_run(run, 0)

    options = {
        "project": project,
        "entity": entity,
        "dir": str(directory),
        "id": run_id(grid_id, "grid"),
        "name": "verdict",
        "group": grid_id,
        "job_type": "grid",
    }
    WandbRun(lambda: start_run(mode, options), {}, what="the grid").end(show)
