"""Writes `run --help`: examples, the groups of conf/ with their levels, and the keys.

Hydra's own help composes the config and copies it once per group, which takes most of a second.
"""

from __future__ import annotations

import dataclasses
import textwrap
from typing import get_type_hints

from nangrid.cell.config import CONF_DIR, Config
from nangrid.records.safety.command import as_typed

WIDTH = 80
USAGE = """\
Train one cell, or with -m a grid of cells, and report the step at which each
goes non-finite.

  python -m src.run                                    one cell: the defaults
                                                       are a reported failure
  python -m src.run dtype=silent_fp16 horizon=32       one cell, other levels
  python -m src.run -m dtype=bf16,fp32 init=zero,mean  a grid: all combinations
  python -m src.run -m +experiment=default             a grid of conf/experiment

Groups and their levels (group=level; experiment takes a plus):
{levels}

Keys (key=value):
  seed=0             seed for initialisation, data order and dropout
  horizon=16         step budget of a cell
  out=DIRECTORY      the grid's directory; cells are in DIRECTORY/cells/CELL_ID
  resume=unfinished  which cells of an existing grid run again: unfinished,
                     errored (those that crashed, too) or restart (all)
  dry_run=true       list the cells and stop
  threads=1          CPU threads per process
  processes=1        processes that train a cell, each on its part of the data
  headroom=10        measure activations and gradients every N steps (0: never)
  keep_every=0       keep a snapshot every N steps (0: only at the failure)
  start_from=PATH    resume from a cell, a snapshot or a Trainer checkpoint;
                     the horizon counts from there
  python=PATH        run the cell in another Python, with its own packages

Launcher (key=value):
  hydra.launcher.n_jobs=2          cells in parallel (1)
  hydra.launcher.timeout_s=600     stop a cell after N seconds (never)
  hydra/launcher=submitit_slurm    one Slurm job per cell
  hydra.launcher.partition=NAME    ... and its settings, such as timeout_min=60

  --cfg job      print the composed config, with the keys inside the groups
                 (optim.lr=1e-4, targets.rank=8)
  --hydra-help   Hydra's own options

Exit code: 0 the experiment ran (NaN is a result), 1 a cell crashed, 2 bad
input, 130 interrupted."""


def usage() -> str:
    """The text, with the levels that conf/ holds."""
    return as_typed(USAGE.format(levels="\n".join(_wrapped(group, names) for group, names in levels().items())))


def levels() -> dict[str, list[str]]:
    """Names of the levels of each group that a run takes, from the files in conf/."""
    groups = [key for key, kind in get_type_hints(Config).items() if dataclasses.is_dataclass(kind)]
    return {group: sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml")) for group in [*groups, "experiment"]}


def _wrapped(group: str, names: list[str]) -> str:
    return textwrap.fill(", ".join(names), WIDTH, initial_indent=f"  {group:14} ", subsequent_indent=" " * 17)
