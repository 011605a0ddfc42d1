"""Computes the committed designs and writes them as experiments into conf/experiment/.

    python sweeps/design.py

To change a design, edit its levels here, run this file and commit both. The first level of a factor is that of the
reported run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

Levels = Mapping[str, Sequence[str]]
Combination = dict[str, str]

EXPERIMENTS = Path(__file__).parents[1] / "conf" / "experiment"


def full(levels: Levels) -> list[Combination]:
    """All combinations of the levels."""
    return [dict(zip(levels, chosen, strict=True)) for chosen in product(*levels.values())]


def one_factor(base: Mapping[str, str], levels: Levels) -> list[Combination]:
    """`base`, and every combination that differs from it in exactly one factor."""
    return [dict(base)] + [
        {**base, factor: level} for factor, choices in levels.items() for level in choices if level != base[factor]
    ]


def covering(levels: Levels, excluded: Sequence[Mapping[str, str]] = ()) -> list[Combination]:
    """A covering array of strength 2: every pair of levels occurs, and no combination contains an excluded one."""
    from covertable import make

    # covertable takes a dot in a name for nesting.
    names = {factor: factor.replace(".", "/") for factor in levels}
    differs = [
        {
            "operator": "or",
            "conditions": [{"operator": "ne", "left": names[f], "value": v} for f, v in combination.items()],
        }
        for combination in excluded
    ]
    rows = make({names[factor]: list(choices) for factor, choices in levels.items()}, strength=2, constraints=differs)
    return [{factor: str(row[name]) for factor, name in names.items()} for row in rows]


LEVELS = {
    "dtype": ("bf16", "fp16", "fp32", "silent_fp16", "amp_bf16"),
    "init": ("zero", "mean", "normal"),
    "optim": ("paged_adamw_8bit", "adamw_torch"),
    "upcast": ("none", "trainable"),
    "checkpointing": ("on", "off"),
    "quant": ("nf4", "none"),
    "targets": ("qv_embed_head", "qv"),
    "data.bos": ("true", "false"),
}
REPORTED = {factor: levels[0] for factor, levels in LEVELS.items()}
SILENT = {**REPORTED, "dtype": "silent_fp16"}
NO_OPS = [{"dtype": dtype, "upcast": "trainable"} for dtype in ("fp32", "amp_bf16")]
"""Combinations that change nothing, because the adapters are float32 already."""

SUSPECTS = {factor: LEVELS[factor] for factor in ("dtype", "init", "optim", "upcast")}

DESIGNS: dict[str, tuple[str, list[Combination]]] = {
    "full": ("Every combination of the four most suspected factors.", full(SUSPECTS)),
    "one_factor": (
        "One factor at a time, starting from the reported run as a 4-bit load without a dtype stored it in 2024.\n"
        "Cheap, but it misses every effect that needs two changes.",
        one_factor(SILENT, LEVELS),
    ),
    "covering": (
        "A covering array of strength 2 over eight factors: every pair of levels is in some cell, except\n"
        "upcast=trainable where nothing is left to cast. Shows whether something fails; src.diagnose then finds why.",
        covering(LEVELS, NO_OPS),
    ),
}


def experiment(name: str, summary: str, design: Sequence[Combination]) -> str:
    """The experiment YAML of a design: one block per cell, or a single block if it is the full product."""
    lines = ["# @package _global_", f"# python -m src.run -m +experiment={name}"]
    lines += [f"# {line}" for line in summary.splitlines()]
    lines += [f"# {len(design)} cells, written by sweeps/design.py.", f"out: outputs/{name}", ""]
    lines += ["hydra:", "  sweeper:", "    blocks:"]
    lines += [f"      - {block}" for block in _blocks(design)]
    return "\n".join(lines) + "\n"


def _blocks(design: Sequence[Combination]) -> list[str]:
    levels = {factor: list(dict.fromkeys(cell[factor] for cell in design)) for factor in design[0]}
    if full(levels) == list(design):
        return [" ".join(f"{factor}={','.join(choices)}" for factor, choices in levels.items())]
    return [" ".join(f"{factor}={level}" for factor, level in cell.items()) for cell in design]


def main() -> None:
    """Write every design and print its size."""
    for name, (summary, design) in DESIGNS.items():
        (EXPERIMENTS / f"{name}.yaml").write_text(experiment(name, summary, design))
        print(f"{EXPERIMENTS / name}.yaml: {len(design)} cells")


if __name__ == "__main__":
    main()
