"""Draws the figures of a report, each as SVG text for a light or dark page.

Lines and words take the page's text colour (`currentColor`). Events have Okabe and Ito's colours, which are safe for
colour-blind readers, and a marker or line style each, so that no meaning rests on colour alone.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

with contextlib.chdir("/"):  # matplotlib reads the matplotlibrc of the working directory, which may be a stranger's
    import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from nangrid.records.autopsy import Autopsy, TensorRecord
from nangrid.records.explain.lines import KINDS
from nangrid.reporting.palette import FINITE, GREEN, ORANGE, PURPLE, SKY, VERMILION

COLOURS = (VERMILION, ORANGE, PURPLE, GREEN, SKY, "#B8A700", "#8F6BB3")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("X", "D", "s", "^", "v", "P", "*")
_INK = "#010203"
"""Placeholder for the page's text colour until the SVG is written."""
_GRID = "#7f7f7f"
_LABEL = 56
"""Letters that fit under a panel."""
_DRAWN = 1e300
"""Numbers above it are not drawn: matplotlib's axes overflow near the largest float64."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nangrid",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "grid.color": _GRID,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True)
class Trace:
    """Loss and gradient norm of one cell; `event` is None if it stayed finite."""

    label: str
    event: str | None
    loss: Sequence[float]
    grad_norm: Sequence[float]


def colours(events: Sequence[str]) -> dict[str, str]:
    """One colour per event, in the order given."""
    return {event: COLOURS[number % len(COLOURS)] for number, event in enumerate(events)}


def survival_figure(curves: Mapping[str, pd.DataFrame], horizon: int) -> str:
    """Kaplan-Meier curves, one panel per factor; a vertical tick marks censored cells."""
    with matplotlib.rc_context(_STYLE):
        figure, panels = _panels(len(curves), height=2.4)
        for axes, (factor, curve) in zip(panels, curves.items(), strict=True):
            for number, (level, rows) in enumerate(curve.groupby("level", sort=False)):
                _survival(axes, rows, str(level), number, horizon)
            axes.set(title=factor, xlabel="steps survived", ylabel="share of cells still finite", ylim=(-0.03, 1.06))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(axis="y")
            axes.legend(fontsize=8, loc="best")
        return _svg(figure, "Kaplan-Meier curves of steps survived, one panel per factor, one line per level")


def _survival(axes: Axes, rows: pd.DataFrame, level: str, number: int, horizon: int) -> None:
    palette = (FINITE, *COLOURS)
    colour, style = palette[number % len(palette)], STYLES[number % len(STYLES)]
    end = max(horizon, int(rows["time"].max()))
    times = [*rows["time"], end]
    survival = [*rows["survival"], rows["survival"].iloc[-1]]
    axes.step([0, *times], [1.0, *survival], where="post", color=colour, linestyle=style, label=level, linewidth=1.8)
    axes.fill_between(
        times, [*rows["lower"], rows["lower"].iloc[-1]], [*rows["upper"], rows["upper"].iloc[-1]],
        step="post", color=colour, alpha=0.12, linewidth=0,
    )  # fmt: skip
    censored = rows[rows["censored"] > 0]
    axes.plot(censored["time"], censored["survival"], "|", color=colour, markersize=11, markeredgewidth=1.8)


def effects_figure(contrasts: pd.DataFrame, horizon: int) -> str:
    """Differences of restricted mean steps survived, one row per level, with intervals if there are several seeds."""
    shown = contrasts[contrasts["pairs"] > 0]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 0.9 + 0.3 * max(1, len(shown))), layout="constrained")
        axes = figure.add_subplot()
        places = np.arange(len(shown))[::-1]
        rows: list[Any] = list(shown.itertuples())
        for place, row in zip(places, rows, strict=True):
            colour = FINITE if row.difference >= 0 else COLOURS[0]
            if not math.isnan(row.lower):
                axes.plot([row.lower, row.upper], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(row.difference, place, "o" if row.difference >= 0 else "D", color=colour, markersize=6)
        axes.axvline(0, color=_INK, linewidth=0.8)
        labels = [f"{row.factor}: {row.level} against {row.base}" for row in rows]
        axes.set_yticks(places, labels)
        axes.set(xlabel=f"difference of mean steps survived, up to step {horizon} (matched cells)")
        axes.set_xlim(-1.05 * horizon, 1.05 * horizon)
        axes.grid(axis="x")
        return _svg(figure, "Difference each level makes in the steps survived, with 95 % intervals over seeds")


def traces_figure(traces: Sequence[Trace], events: Sequence[str]) -> str:
    """Loss and gradient norm of every cell to its onset, which is marked; the norm on a logarithmic axis."""
    with matplotlib.rc_context(_STYLE):
        figure, panels = _panels(2, height=2.3, below=1.0 + 0.18 * (len(events) // 2 + 1))
        for axes, name in zip(panels, ("loss", "grad_norm"), strict=True):
            for trace in sorted(traces, key=lambda t: t.event is not None):
                _trace(axes, getattr(trace, name), trace.event, list(events), len(traces))
            longest = max((len(trace.loss) for trace in traces), default=1)
            axes.set(xlabel=f"optimizer step\n{_highest(traces, name)}", xlim=(-0.5, max(1, longest) - 0.5))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(axis="y")
        left, right = panels
        left.set(title="training loss", ylabel="loss (nats per token)")
        right.set(title="gradient norm before clipping", ylabel="norm")
        if any(0 < norm < math.inf for trace in traces for norm in trace.grad_norm):
            right.set_yscale("log")
        right.yaxis.set_major_formatter(FuncFormatter(_power))
        handles = [matplotlib.lines.Line2D([], [], color=FINITE, label="finite to its last step")]
        for number, event in enumerate(events):
            handles.append(matplotlib.lines.Line2D([], [], **_event_style(number), markersize=6, label=event))
        figure.legend(handles=handles, loc="lower center", ncols=2, fontsize=8)
        return _svg(figure, "Loss and gradient norm by step, to the onset of each cell")


def _highest(traces: Sequence[Trace], name: str) -> str:
    """Which finite run has the highest value, so that a line far above the others has a name."""
    largest = {trace.label: max(getattr(trace, name), default=-math.inf) for trace in traces if trace.event is None}
    if len(largest) < 2:
        return ""
    return f"highest finite run:\n{max(largest, key=largest.__getitem__)[:_LABEL]}"


def _trace(axes: Axes, values: Sequence[float], event: str | None, events: list[str], many: int) -> None:
    finite = [value if abs(value) < _DRAWN else math.nan for value in values]
    alpha = max(0.15, min(0.9, 12 / many))
    if event is None:
        axes.plot(finite, "." if len(finite) == 1 else "-", color=FINITE, alpha=alpha, linewidth=1)
        return
    style = _event_style(events.index(event))
    steps = [step for step, value in enumerate(finite) if not math.isnan(value)]
    axes.plot(finite, **(style | {"marker": ""}), alpha=max(alpha, 0.4), linewidth=1)
    if steps:
        axes.plot(steps[-1], finite[steps[-1]], **(style | {"linestyle": ""}), markersize=6, alpha=0.8)


def _event_style(number: int) -> dict[str, Any]:
    several = len(COLOURS)
    return {
        "color": COLOURS[number % several],
        "linestyle": STYLES[number % several],
        "marker": MARKERS[number % several],
    }


def autopsy_figure(autopsy: Autopsy, layers: int) -> str:
    """Where in the model the first non-finite number arose and, for an overflow, how far past the limit."""
    limit = autopsy.dtype_max
    sized = [operand for operand in autopsy.inputs if 0 < operand.absmax < math.inf][:4]
    measured = autopsy.kind == "overflow" and bool(sized) and 0 < limit < math.inf
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 2.9 if measured else 1.2), layout="constrained")
        if measured:
            above, below = figure.subplots(2, 1, height_ratios=[1, 1.5])
            _magnitudes(below, sized, autopsy.dtype, limit)
        else:
            above = figure.subplots()
        _model_strip(above, autopsy, layers)
        return _svg(figure, f"Origin in {autopsy.module or autopsy.phase}: its place in the model")


def headroom_figure(room: pd.DataFrame, limits: Mapping[str, float]) -> str:
    """The largest activation and gradient of each module, in the order of the forward pass, against the limits."""
    with matplotlib.rc_context(_STYLE):
        figure, (axes, spare) = _panels(2, height=2.6)
        for panel, kind, colour, marker in zip(
            (axes, spare), ("activation", "gradient"), (FINITE, COLOURS[1]), ("o", "D"), strict=True
        ):
            rows = room[(room["kind"] == kind) & (room["absmax"].abs() < _DRAWN)]
            panel.plot(rows["order"], rows["absmax"], marker, color=colour, markersize=3, alpha=0.7)
            panel.set(title=f"largest {kind}", xlabel="module, in forward order", yscale="log")
            top = max([limits["fp16"] * 8, *rows["absmax"]])
            panel.set_ylim(top=min(top * 4, _DRAWN))
            panel.axhline(limits["fp16"], color=COLOURS[0], linewidth=1.2, linestyle="--")
            _note(panel, f"largest fp16: {limits['fp16']:.0f}", (float(room["order"].max()) / 2, limits["fp16"] * 2.4))
            panel.yaxis.set_major_formatter(FuncFormatter(_power))
        axes.set_ylabel("magnitude")
        return _svg(figure, "Largest activation and gradient of every module against the largest float16")


def _power(value: float, _: int) -> str:
    return f"{value:.0e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def _model_strip(axes: Axes, autopsy: Autopsy, layers: int) -> None:
    places = ["emb.", *map(str, range(layers)), "head"]
    origin = _place(autopsy.module, layers)
    hit = {_place(name, layers) for name in autopsy.parameters}
    faces = [COLOURS[0] if n == origin else COLOURS[1] if n in hit else "none" for n in range(len(places))]
    axes.bar(range(len(places)), 1, width=0.86, color=faces, edgecolor=_INK, linewidth=0.8)
    crowded = layers > 26
    last = len(places) - 1
    shown = [n for n in range(len(places)) if not crowded or n in (0, last, origin) or (n - 1) % 4 == 0]
    axes.set_xticks(shown, [places[n] for n in shown], fontsize=8)
    phase = "optimizer update" if autopsy.phase == "optimizer" else f"{autopsy.phase} pass"
    title = f"{KINDS.get(autopsy.kind, autopsy.kind)} in the {phase}{f', {autopsy.module}' if autopsy.module else ''}"
    axes.set(yticks=[], title=title, xlim=(-0.8, last + 0.8))
    origins = "; X: origin" if origin is not None else ""
    spread = "; P: at the end of the step a parameter or its gradient is non-finite there" if hit else ""
    axes.set_xlabel(f"decoder layer{origins}{spread}")
    for place in sorted(p for p in hit if p is not None and p != origin):
        axes.text(place, 0.5, "P", ha="center", va="center", fontsize=8, color="black", in_layout=False)
    axes.spines[:].set_visible(False)
    if origin is not None:
        axes.text(origin, 0.5, "X", ha="center", va="center", fontweight="bold", color="black", in_layout=False)


def _place(module: str, layers: int) -> int | None:
    """The index of a module's place in the strip."""
    if layer := re.search(r"\b(?:layers|h|blocks?|layer)\.(\d+)\b", module):
        return int(layer[1]) + 1
    if "embed" in module or module.endswith("wte"):
        return 0
    return layers + 1 if re.search(r"head|\.norm$|^norm$|classifier|score", module) else None


def _magnitudes(axes: Axes, operands: Sequence[TensorRecord], dtype: str, limit: float) -> None:
    for place, operand in enumerate(reversed(operands)):
        past = operand.absmax > limit
        axes.plot(operand.absmax, place, "D" if past else "o", color=COLOURS[0] if past else FINITE, markersize=8)
        _note(axes, f"{operand.absmax:.5g}", (operand.absmax, place + 0.28))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_power))
    axes.xaxis.set_minor_formatter(NullFormatter())
    top = len(operands) + 0.2
    axes.vlines(limit, -0.6, top - 0.6, color=_INK, linewidth=1.2)
    _note(axes, f"largest {dtype}: {limit:.5g}", (limit, top - 0.3))
    axes.set_yticks(range(len(operands)), [f"{operand.name} ({operand.dtype})" for operand in reversed(operands)])
    below = "; two below the limit can pass it together" * all(o.absmax <= limit for o in operands)
    axes.set(xlabel=f"largest |operand|, log scale{below}", ylim=(-0.6, top))
    axes.margins(x=0.25)
    axes.grid(axis="x")


def _note(axes: Axes, text: str, place: tuple[float, float]) -> None:
    axes.text(*place, text, fontsize=8, ha="center", va="center", in_layout=False)


def _panels(count: int, height: float, below: float = 0.55) -> tuple[Figure, list[Axes]]:
    """Figure with two panels per row, each of this height; `below` is the space under the last row. All in inches."""
    columns = min(2, max(1, count))
    rows = math.ceil(max(1, count) / columns)
    above, between = 0.35, 0.85
    inside = rows * height - (rows - 1) * 0.1
    figure = Figure(figsize=(7.2, inside + above + below))
    tall = figure.get_figheight()
    axes_height = (inside - (rows - 1) * between) / rows
    # margins by hand: a constrained layout draws every panel twice
    grid = {"left": 0.08, "right": 0.98, "wspace": 0.22, "hspace": between / axes_height}
    grid |= {"top": 1 - above / tall, "bottom": below / tall}
    panels = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid).flat)
    for spare in panels[count:]:
        spare.set_axis_off()
    return figure, panels[:count]


def _svg(figure: Figure, title: str) -> str:
    """The figure as inline SVG that scales with the page and takes its colour."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*pt"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*pt"', r"\1", svg, count=1)
    escaped = title.replace("&", "&amp;").replace("<", "&lt;")
    return svg.replace("<svg", '<svg role="img"', 1).replace(">", f"><title>{escaped}</title>", 1)
