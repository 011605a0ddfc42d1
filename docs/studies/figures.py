"""Draws the figures of docs/studies/peft1715.md from the committed records.

python docs/studies/figures.py
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from nangrid.records.grid import GridDirectory
from nangrid.records.history import read_history
from nangrid.reporting.palette import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION

DOCS = Path(__file__).parents[1]
AS_REPORTED = {
    "quant": "nf4",
    "targets": "qv_embed_head",
    "checkpointing": "on",
    "optim.lr": 2e-4,
    "optim.eps": 1e-8,
    "data.bos": True,
}
DTYPES = {
    "fp32": "float32",
    "bf16": "bfloat16",
    "silent_fp16": "float16 storage,\nbfloat16 autocast",
    "fp16": "float16",
}
COLUMNS = [(init, optim, upcast) for init in ("zero", "mean") for optim in ("paged_adamw_8bit", "adamw_torch")
           for upcast in ("none", "trainable")]  # fmt: skip
MECHANISMS = {
    "fp16-activation-overflow": (VERMILION, "an activation exceeds 65504"),
    "fp16-gradient-overflow": (PURPLE, "a gradient exceeds 65504"),
    "adam-eps-underflow": (ORANGE, "AdamW's eps rounds to 0"),
}
LATE = {
    "cb45b6da6968": ("float16 storage, mean rows", BLUE, "o"),
    "718a15bcc9b0": ("bfloat16, zero rows", GREEN, "^"),
    "161fec23a567": ("float16 storage, zero rows", VERMILION, "s"),
}
"""Cells of the default grid; the one that fails is drawn above the others."""


def failing_seeds(axes: Axes, onsets: pd.DataFrame) -> None:
    """How many of the seeds of each combination failed, coloured by the mechanism of most of them."""
    onsets = onsets[(onsets[list(AS_REPORTED)] == pd.Series(AS_REPORTED)).all(axis="columns")]
    for row, dtype in enumerate(DTYPES):
        for column, levels in enumerate(COLUMNS):
            cells = onsets[(onsets[["dtype", "init", "optim", "upcast"]] == [dtype, *levels]).all(axis="columns")]
            failed = cells[cells["status"] == "nonfinite"]
            colour = MECHANISMS[failed["mechanism"].mode()[0]][0] if len(failed) else SKY if len(cells) else "none"
            axes.add_patch(Rectangle((column, row), 0.94, 0.94, facecolor=colour, edgecolor="#888888", linewidth=0.5))
            text = f"{len(failed)} of {len(cells)}" if len(cells) else "not run"
            axes.text(column + 0.47, row + 0.47, text, ha="center", va="center", fontsize=9)
    axes.set(xlim=(0, len(COLUMNS)), ylim=(len(DTYPES), 0), title="Seeds that went non-finite within 16 steps")
    axes.set_yticks([row + 0.47 for row in range(len(DTYPES))], list(DTYPES.values()))
    names = {"none": "no cast", "trainable": "cast to\nfloat32", "paged_adamw_8bit": "8-bit", "adamw_torch": "AdamW"}
    labels = [f"{init} rows\n{names[optim]}\n{names[upcast]}" for init, optim, upcast in COLUMNS]
    axes.set_xticks([column + 0.47 for column in range(len(COLUMNS))], labels, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    handles = [Patch(color=SKY, label="none failed"), *(Patch(color=c, label=text) for c, text in MECHANISMS.values())]
    axes.legend(handles=handles, ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.22), frameon=False, fontsize=8)


def late_failure(loss: Axes, norm: Axes, grid: GridDirectory) -> None:
    """Loss and gradient norm of three cells whose first batches hold no new token."""
    histories = {cell: read_history(grid.cell(cell)) for cell in LATE}
    for cell, (label, colour, marker) in LATE.items():
        history = histories[cell]
        for axes, column in ((loss, "loss"), (norm, "grad_norm")):
            values = history[column].replace([float("inf")], float("nan"))
            axes.plot(history["step"], values, color=colour, marker=marker, markersize=5, label=label)
    longest = max(histories.values(), key=len)
    new = longest.loc[longest["new_tokens"] > 0, "step"]
    for axes in (loss, norm):
        for step in new:
            axes.axvspan(step - 0.4, step + 0.4, color="#bbbbbb", alpha=0.4, linewidth=0)
        axes.set_xlabel("optimizer step; shaded: the batch holds new tokens")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    loss.annotate("NaN at step 4", (3, 6.61), (0.1, 8.2), arrowprops={"arrowstyle": "-"}, color=VERMILION, fontsize=9)
    norm.annotate("infinite at step 3", (2, 57), (0, 2e3), arrowprops={"arrowstyle": "-"}, color=VERMILION, fontsize=9)
    loss.set(title="Loss", ylabel="nats per token")
    norm.set(title="Gradient norm before clipping", ylabel="norm", yscale="log")
    loss.legend(frameon=False, fontsize=8, loc="upper right")


def _saved(figure: Figure, name: str) -> None:
    figure.savefig(DOCS / "assets" / name, bbox_inches="tight", metadata={"Date": None}, facecolor="white")
    print(DOCS / "assets" / name)


def main() -> None:
    """Write both figures into docs/assets."""
    matplotlib.rcParams |= {"svg.hashsalt": "nangrid", "svg.fonttype": "none", "font.family": "sans-serif"}
    figure = Figure(figsize=(9, 3.4))
    failing_seeds(figure.subplots(), pd.read_csv(DOCS / "peft1715" / "onsets.csv", keep_default_na=False))
    _saved(figure, "peft1715_seeds.svg")
    with tempfile.TemporaryDirectory() as folder, tarfile.open(DOCS / "default" / "records.tar.xz") as archive:
        archive.extractall(folder, filter="data")
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        late_failure(*figure.subplots(1, 2), GridDirectory.at(f"{folder}/default"))
        _saved(figure, "peft1715_late.svg")


if __name__ == "__main__":
    main()
