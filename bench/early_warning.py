"""Does a detector warn before a run goes NaN, and how often does it warn for nothing?

python bench/early_warning.py           train the cells of bench/early_warning_cells.py, then judge their records
python bench/early_warning.py --judge   judge the committed records

Needs `pip install --no-deps trainscope==1.8.1`. Writes bench/results/early_warning.jsonl.xz (the records),
bench/results/early_warning.md (the table) and docs/assets/early_warning.svg (the figure).

A detector sees the steps before the onset. Its lead is the number of steps from its first warning to the onset. A false
alarm is a warning in a run that stays finite to its end.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import matplotlib
import pandas as pd
import torch
from early_warning_records import Cell, pack, unpack
from matplotlib.figure import Figure

from nangrid.analysis.claims import clopper_pearson
from nangrid.cell.environment import read_environment
from nangrid.reporting.palette import BLUE, GREEN, ORANGE, VERMILION
from nangrid.watch import growth as rule

ROOT = Path(__file__).parents[1]
RUNS = Path("outputs/early_warning")
RECORDS = ROOT / "bench" / "results" / "early_warning.jsonl.xz"
RESULT = RECORDS.with_name("early_warning.md")
FIGURE = ROOT / "docs" / "assets" / "early_warning.svg"
STUDY = ROOT / "docs" / "peft1715" / "records.tar.xz"
FAILURES = {"arrives": (VERMILION, "o", "arrives with the data"), "builds up": (BLUE, "D", "builds up")}
HEALTHY = {
    "healthy, tiny": (ORANGE, "", "tiny model"),
    "healthy, real": (GREEN, "//", "Gemma 3 270M"),
}
DURABLE, LEAST, SAMPLED_EVERY = 3, 50, 5
"""trainscope's kurtosis: a crossing holds for 3 steps, 50 are needed; by default it measures each fifth step."""

OTHER = "meant to stay finite, but failed"

Warned = int | None


def cusum(losses: Sequence[float], least: float = -math.inf) -> Warned:
    """The first alarm of trainscope's default detector whose score is above `least`: a falling loss scores below 0."""
    from trainscope.core.detectors.changepoint import ChangePointDetector

    detector = ChangePointDetector()
    scores = enumerate(map(detector.update, losses))
    return next((step for step, score in scores if score is not None and score > least), None)


def crossing(values: Sequence[float]) -> Warned:
    """The step at which trainscope's robust crossing rule can be known to hold."""
    from trainscope.analysis import first_crossing_step

    step = first_crossing_step(list(values))
    return None if step is None else max(step + DURABLE - 1, LEAST - 1)


def sampled(values: Sequence[float]) -> Warned:
    """The same with default settings: steps that were not measured count as 0."""
    return crossing([value if step % SAMPLED_EVERY == 0 else 0.0 for step, value in enumerate(values)])


def growth(values: Sequence[float], dtype: str, ahead: int = rule.MOST_AHEAD) -> Warned:
    """The first warning of nangrid's rule: a line through log2 of 10 values meets the dtype's limit within `ahead`."""
    with patch.object(rule, "MOST_AHEAD", ahead):
        follows = rule.Growth({getattr(torch, dtype)})
        for step, value in enumerate(values):
            follows.note(step, value)
            if follows.warnings:
                return step
    return None


def trend(cell: Cell, ahead: int) -> Warned:
    """The same rule on the largest activation of each module."""
    return earliest(growth(values, cell.dtypes[module], ahead) for module, values in cell.largest.items())


def ten_times(norms: Sequence[float]) -> Warned:
    """The first norm above 10 times the median of at least 10 earlier ones."""
    return next((step for step in range(10, len(norms)) if norms[step] > 10 * median(norms[:step])), None)


def earliest(warned: Iterator[Warned]) -> Warned:
    return min((step for step in warned if step is not None), default=None)


def layers(cell: Cell) -> list[Sequence[float]]:
    return [values for module, values in cell.kurtosis.items() if module != "picked"]


DETECTORS: dict[str, Callable[[Cell], Warned]] = {
    "CUSUM of the loss (trainscope)": lambda cell: cusum(cell.loss),
    "CUSUM of the loss, rises only": lambda cell: cusum(cell.loss, least=0),
    "kurtosis, one module, each 5th step (trainscope)": lambda cell: sampled(cell.kurtosis["picked"]),
    "kurtosis, one module, each step": lambda cell: crossing(cell.kurtosis["picked"]),
    "kurtosis, any decoder layer, each step": lambda cell: earliest(map(crossing, layers(cell))),
    "gradient norm, crossing rule (trainscope)": lambda cell: crossing(cell.grad_norm),
    "gradient norm > 10 x its median": lambda cell: ten_times(cell.grad_norm),
    "growth of the largest gradient (nangrid)": lambda cell: growth(cell.max_gradient, cell.adapter),
    "headroom trend, any module": lambda cell: trend(cell, rule.MOST_AHEAD),
    "headroom trend, at most 20 steps ahead": lambda cell: trend(cell, 20),
}


def group(cell: Cell) -> str:
    """A late failure that did not come is a healthy run; a healthy run that failed is neither."""
    if cell.onset is None:
        return "healthy, real" if cell.kind in FAILURES else cell.kind
    return cell.kind if cell.kind in FAILURES else OTHER


def judge(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row per cell and detector: the step of its first warning, and the lead."""
    logging.disable()
    rows = [
        {"kind": group(cell), "onset": cell.onset, "detector": name, "warned": detector(cell)}
        for cell in cells
        for name, detector in DETECTORS.items()
    ]
    told = pd.DataFrame(rows).astype({"onset": "Int64", "warned": "Int64"})
    return told.assign(lead=told["onset"] - told["warned"])


def caught(told: pd.DataFrame) -> str:
    """How many failures were warned of, and how many steps ahead."""
    leads = told["lead"].dropna()
    ahead = f", {leads.median():.0f} steps ahead ({leads.min()} to {leads.max()})" if len(leads) else ""
    return f"{len(leads)} of {len(told)}{ahead}"


def alarms(told: pd.DataFrame) -> str:
    """How many healthy cells were warned of, with the 95 % interval of the rate."""
    warned, cells = told["warned"].notna().sum(), len(told)
    lower, upper = clopper_pearson(warned, cells)
    return f"{warned} of {cells} ({lower:.0%} to {upper:.0%})"


def table(told: pd.DataFrame) -> list[str]:
    """One row per detector."""
    columns = [f"warned: {meaning}" for *_, meaning in FAILURES.values()]
    columns += [f"false alarms: {meaning}" for *_, meaning in HEALTHY.values()]
    lines = [f"| detector | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for name in DETECTORS:
        rows = told[told["detector"] == name].groupby("kind")
        shown = [caught(rows.get_group(kind)) for kind in FAILURES] + [alarms(rows.get_group(kind)) for kind in HEALTHY]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def figure(told: pd.DataFrame) -> str:
    """Leads on the left, false alarms on the right, one row per detector."""
    style = {"svg.hashsalt": "nangrid", "svg.fonttype": "none", "font.size": 9, "legend.frameon": False}
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(10.5, 6), layout="constrained")
        leads, rates = drawn.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        longest = int(told["lead"].max())
        for row, name in enumerate(DETECTORS):
            kinds = dict(list(told[told["detector"] == name].groupby("kind")))
            for height, kind in zip((row - 0.18, row + 0.18), FAILURES, strict=True):
                draw_leads(leads, kinds[kind], height, kind, longest)
            for height, kind in zip((row - 0.18, row + 0.18), HEALTHY, strict=True):
                draw_rate(rates, kinds[kind], height, kind)
        leads.set(title="Late failures of Gemma 3 270M: first warnings", xlim=(-1, 1.22 * longest))
        leads.set(xlabel="lead (steps from the first warning to the onset)")
        leads.set_yticks(
            range(len(DETECTORS)), [name.replace(" (", "\n(").replace(", each", ",\neach") for name in DETECTORS]
        )
        leads.invert_yaxis()
        rates.set(title="Healthy runs: false alarms", xlim=(0, 130), xticks=range(0, 101, 25))
        rates.set(xlabel="runs with a false alarm (%), 95 % interval")
        for axes in (leads, rates):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="x", alpha=0.3)
            axes.legend(*axes.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0, -0.1))
        written = io.StringIO()
        drawn.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def draw_leads(axes: Any, told: pd.DataFrame, height: float, kind: str, longest: int) -> None:
    """One marker per failure that was warned of, and how many were."""
    colour, marker, meaning = FAILURES[kind]
    ahead = told["lead"].dropna().astype(int)
    label = f"{meaning} ({len(told)} runs)" if height < 0.2 else None
    axes.plot(ahead, [height] * len(ahead), marker, color=colour, alpha=0.6, markersize=5, label=label)
    axes.text(1.05 * longest, height, f"{len(ahead)} of {len(told)}", color=colour, va="center", fontsize=8)


def draw_rate(axes: Any, told: pd.DataFrame, height: float, kind: str) -> None:
    """A bar with its interval, and how many runs were warned of."""
    colour, hatch, meaning = HEALTHY[kind]
    warned, cells = int(told["warned"].notna().sum()), len(told)
    rate, (lower, upper) = warned / cells, clopper_pearson(warned, cells)
    label = f"{meaning} ({cells} runs)" if height < 0.2 else None
    axes.barh(height, 100 * rate, 0.34, color=colour, hatch=hatch, edgecolor="white", label=label)
    axes.errorbar(100 * rate, height, xerr=[[100 * (rate - lower)], [100 * (upper - rate)]], color="#333333", capsize=2)
    axes.text(100 * upper + 2, height, f"{warned} of {cells}", va="center", fontsize=8)


def study() -> str:
    """When the failures of the study in docs/peft1715 came, and what nangrid's rule says of its finite cells."""
    onsets, warned = list[int](), list[bool]()
    with tarfile.open(STUDY) as archive:
        read = {name: archive.extractfile(name) for name in archive.getnames() if name.endswith((".json", ".parquet"))}
        texts = {name: file.read() for name, file in read.items() if file}
    for name in (name for name in texts if name.endswith("result.json")):
        cell, history = json.loads(texts[name]), texts.get(name.replace("result.json", "history.parquet"), b"")
        if cell["status"] == "nonfinite":
            onsets.append(cell["onset"]["step"])
        elif cell["status"] == "finite":
            warned.append(growth(pd.read_parquet(io.BytesIO(history))["max_gradient"], "float16") is not None)
    return (
        f"The study in docs/peft1715 has {len(onsets)} failures, {sum(map(bool, onsets))} of them after step 0, "
        f"the last at step {max(onsets)}. Every rule needs at least 10 steps, so none can warn of them. nangrid's rule "
        f"warns in {sum(warned)} of the {len(warned)} finite cells."
    )


def judged(cells: Sequence[Cell], told: pd.DataFrame) -> list[str]:
    """The table, the onsets and the study."""
    lines = [*table(told), ""]
    for kind, (*_, meaning) in FAILURES.items():
        onsets = sorted(cell.onset or 0 for cell in cells if group(cell) == kind)
        lines.append(f"Onsets, {meaning}: {', '.join(map(str, onsets))}.")
    unexpected = [cell for cell in cells if cell.onset is None and cell.kind in FAILURES]
    failed = [cell for cell in cells if group(cell) == OTHER]
    lines.append(f"{len(unexpected)} cells that were meant to fail stayed finite, and count as healthy.")
    lines.append(f"{len(failed)} cells that were meant to stay finite failed, and are left out.")
    return [*lines, "", study()]


def head(cells: Sequence[Cell]) -> list[str]:
    """The command, the machine, the versions, and how to read the table."""
    made = read_environment("cpu", "")
    packages = ", ".join(f"{name} {made[name]}" for name in ("python", "torch", "transformers", "peft"))
    machine = f"{made['cpu']} ({made['cpu_capability']})"
    return [
        f"`python bench/early_warning.py`: {len(cells)} cells, {machine}, {packages},",
        f"trainscope {version('trainscope')}.",
        "",
        "A warning counts if it comes at a step before the onset: k of n failures, and the median lead (least, most).",
        "A false alarm is a warning in a run that stays finite: k of n runs, and the 95 % interval of the rate.",
        "The limit of 20 steps in the last row was chosen after some of the runs were seen: 6 of the failures that",
        "build up, 88 of the tiny runs and one healthy run of Gemma.",
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", action="store_true", help="judge the committed records, train nothing")
    trains = not parser.parse_args().judge
    if trains:
        os.environ |= {"HF_HUB_OFFLINE": "1", "MKL_CBWR": "AUTO,STRICT"}
        from early_warning_cells import record_all

        record_all(RUNS)
        pack((json.loads(path.read_text()) for path in RUNS.glob("*.json")), RECORDS)
    cells = list(unpack(RECORDS))
    told = judge(cells)
    lines = judged(cells, told)
    print("\n".join(lines))
    if trains:
        FIGURE.write_text(figure(told))
        RESULT.write_text("\n".join([*head(cells), *lines]) + "\n")


if __name__ == "__main__":
    main()
