"""Which cells do the committed designs hold? Writes them into conf/experiment/, where the grid command finds them.

    python sweeps/design.py

Change a level here, run it, commit both. A factor's first level is the reported run's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

Levels = Mapping[str, Sequence[str]]
Combination = dict[str, str]

EXPERIMENTS = Path(__file__).parents[1] / "conf" / "experiment"


def full(levels: Levels) -> list[Combination]:
    """The whole product."""
    return [dict(zip(levels, chosen, strict=True)) for chosen in product(*levels.values())]


def one_factor(base: Mapping[str, str], levels: Levels) -> list[Combination]:
    """The base, and every combination that differs from it in one factor."""
    return [dict(base)] + [
        {**base, factor: level} for factor, own in levels.items() for level in own if level != base[factor]
    ]


def covering(levels: Levels, excluded: Sequence[Mapping[str, str]] = ()) -> list[Combination]:
    """Every pair of levels in at least one combination, but for those that hold an excluded set of levels."""
    from covertable import make

    # covertable reads a dot in a name as nesting
    names = {factor: factor.replace(".", "/") for factor in levels}
    differs = [
        {"operator": "or", "conditions": [{"operator": "ne", "left": names[f], "value": v} for f, v in some.items()]}
        for some in excluded
    ]
    rows = make({names[factor]: list(own) for factor, own in levels.items()}, strength=2, constraints=differs)
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
"""Where the adapters are float32 already."""

SUSPECTS = {factor: LEVELS[factor] for factor in ("dtype", "init", "optim", "upcast")}

DESIGNS: dict[str, tuple[str, list[Combination]]] = {
    "full": ("Every combination of the four factors that were suspected most.", full(SUSPECTS)),
    "one_factor": (
        "One factor at a time around the reported run as a 4-bit load without a dtype stored it in 2024. Cheap, and\n"
        "blind to what takes two changes.",
        one_factor(SILENT, LEVELS),
    ),
    "covering": (
        "A covering array of strength 2 over eight factors: every pair of levels is in some cell, but for an upcast\n"
        "that has nothing to cast. Finds that something fails; src.diagnose then finds what.",
        covering(LEVELS, NO_OPS),
    ),
}


def experiment(name: str, what: str, design: Sequence[Combination]) -> str:
    """A design as the YAML of an experiment: a block a cell, or a single one where it is the whole product."""
    lines = ["# @package _global_", f"# python -m src.run -m +experiment={name}"]
    lines += [f"# {line}" for line in what.splitlines()]
    lines += [f"# {len(design)} cells, written by sweeps/design.py.", f"out: outputs/{name}", ""]
    lines += ["hydra:", "  sweeper:", "    blocks:"]
    lines += [f"      - {block}" for block in _blocks(design)]
    return "\n".join(lines) + "\n"


def _blocks(design: Sequence[Combination]) -> list[str]:
    seen = {factor: list(dict.fromkeys(cell[factor] for cell in design)) for factor in design[0]}
    if full(seen) == list(design):
        return [" ".join(f"{factor}={','.join(levels)}" for factor, levels in seen.items())]
    return [" ".join(f"{factor}={level}" for factor, level in cell.items()) for cell in design]


def main() -> None:
    """Write all of them."""
    for name, (what, design) in DESIGNS.items():
        (EXPERIMENTS / f"{name}.yaml").write_text(experiment(name, what, design))
        print(f"{EXPERIMENTS / name}.yaml: {len(design)} cells")


if __name__ == "__main__":
    main()
