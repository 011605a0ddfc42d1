"""Builds the W&B workspace of a project: onsets, survival, curves and clocks of its cells.

    python sweeps/dashboard.py --entity ENTITY --project nangrid
    python sweeps/dashboard.py --entity ENTITY --project nangrid --print

The first saves the workspace to the server as a new view and prints its address. The second prints the specification
and needs no server.
"""

from __future__ import annotations

import argparse
import json

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from nangrid.records.cell import CLOCKS

FACTORS = ("dtype", "init", "checkpointing", "optim", "upcast")
CURVES = {"Loss": "loss", "Gradient norm before clipping": "grad_norm", "Largest update": "max_update"}
OUTCOME = ("status", "onset_step", "onset_clock", "censored", "steps_survived", "trains")


def dashboard(entity: str, project: str) -> ws.Workspace:
    """The workspace of a project. Its run list is the table of cells, with levels and outcome as pinned columns."""
    columns = [f"config:{factor}" for factor in ("seed", *FACTORS)] + [f"summary:{key}" for key in OUTCOME]
    return ws.Workspace(
        entity=entity,
        project=project,
        name="nangrid: why did it go NaN?",
        sections=[_onsets(), _survival(), _curves(), _clocks()],
        settings=ws.WorkspaceSettings(x_axis="Step", ignore_outliers=False, max_runs=100),
        runset_settings=ws.RunsetSettings(
            pinned_columns=columns,
            order=[ws.Ordering(ws.Summary("onset_step"), ascending=True)],
        ),
    )


def _onsets() -> ws.Section:
    """Bar plots of the mean onset per level; of a censored cell, `onset_step` is its horizon."""
    panels: list[wr.Panel] = [
        wr.BarPlot(
            title=f"Onset step by {factor} (censored: the horizon)",
            metrics=["onset_step"],
            groupby=wr.Config(factor),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for factor in FACTORS
    ]
    return ws.Section(name="Onset by factor", panels=panels, is_open=True)


def _survival() -> ws.Section:
    columns = [
        *(wr.ParallelCoordinatesPlotColumn(wr.Config(factor), display_name=factor) for factor in FACTORS),
        wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric("steps_survived"), display_name="steps survived"),
    ]
    panels: list[wr.Panel] = [
        wr.ParallelCoordinatesPlot(title="Which levels survive?", columns=columns),
        wr.BarPlot(title="Steps survived", metrics=["steps_survived"], max_bars_to_show=100),
        wr.RunComparer(diff_only=True),
    ]
    return ws.Section(name="Steps survived", panels=panels, is_open=True)


def _curves() -> ws.Section:
    """Line plots that end at the onset, because W&B draws no NaN."""
    panels: list[wr.Panel] = [
        wr.LinePlot(title=f"{title}, to the onset", x="Step", y=[key], log_y=key != "loss", max_runs_to_show=100)
        for title, key in CURVES.items()
    ]
    return ws.Section(name="Gradient norm to onset", panels=panels, is_open=True)


def _clocks() -> ws.Section:
    panels: list[wr.Panel] = [
        wr.LinePlot(title=f"{clock} non-finite", x="Step", y=[f"nonfinite/{clock}"], max_runs_to_show=100)
        for clock in CLOCKS
    ]
    return ws.Section(name="Clocks", panels=panels, is_open=True)


def main() -> None:
    """Save the workspace, or print its specification."""
    parser = argparse.ArgumentParser(description="Build the W&B workspace of a nangrid project.")
    parser.add_argument("--entity", required=True, help="user or team")
    parser.add_argument("--project", default="nangrid")
    parser.add_argument("--print", action="store_true", help="print the specification instead of saving it")
    options = parser.parse_args()
    workspace = dashboard(options.entity, options.project)
    if options.print:
        print(json.dumps(spec(workspace), indent=1, sort_keys=True))
    else:
        print(workspace.save().url)


def spec(workspace: ws.Workspace) -> dict[str, object]:
    """The workspace as the JSON object that W&B saves."""
    saved: dict[str, object] = json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return saved


if __name__ == "__main__":
    main()
