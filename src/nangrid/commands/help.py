"""What does `run --help` say?

Hydra's own help composes the config and copies it once a group, which takes most of a second.
"""

from __future__ import annotations

from nangrid.cell.config import CONF_DIR

USAGE = """\
Train one cell, or with -m a grid of cells, and say when each went non-finite.

  python -m src.run                                          one cell: the defaults are a reported failing run
  python -m src.run dtype=silent_fp16 init=mean horizon=32   one cell, other levels
  python -m src.run -m dtype=bf16,fp32 init=zero,mean        a grid: every combination
  python -m src.run -m +experiment=default                   a grid that is committed in conf/experiment
  python -m src.run -m +experiment=smoke hydra.launcher.n_jobs=2

An installed nangrid takes the same after `nangrid run`.

Groups and their levels (group=level; an experiment takes a plus):
{groups}

Keys (key=value):
  seed=0             of the initialisation, the order of the data, and dropout
  horizon=16         step budget of a cell
  out=DIRECTORY      the grid's directory; cells are kept in DIRECTORY/cells/CELL_ID
  resume=unfinished  which cells of an existing grid run again: unfinished, errored (those too), restart (all)
  dry_run=true       list the cells and stop
  threads=1          CPU threads a cell
  keep_every=0       steps between two snapshots kept to start from; 0: the failing step's alone
  start_from=PATH    go on with the run of a cell, a snapshot or a Trainer checkpoint; the horizon counts from there
  hydra.launcher.n_jobs=1          cells side by side
  hydra.launcher.timeout_s=null    seconds after which a cell is stopped and recorded as such
  hydra/launcher=submitit_slurm    one job a cell on a cluster (hydra.launcher.partition=... timeout_min=...)

  --cfg job          print the composed config: each of its keys can be given (optim.lr=1e-4, targets.rank=8)
  --hydra-help       Hydra's own options

Exit code: 0 the experiment ran (NaN is a result), 1 a cell crashed, 2 bad input, 130 interrupted."""


def usage() -> str:
    """The text, with the levels that conf/ holds."""
    lines = (f"  {group:14} {', '.join(levels)}" for group, levels in groups().items())
    return USAGE.format(groups="\n".join(lines))


def groups() -> dict[str, list[str]]:
    """Every group of conf/ but Hydra's own, with the names of its levels."""
    folders = sorted(path for path in CONF_DIR.iterdir() if path.is_dir() and path.name != "hydra")
    return {folder.name: sorted(level.stem for level in folder.glob("*.yaml")) for folder in folders}
