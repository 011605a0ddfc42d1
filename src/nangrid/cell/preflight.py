"""What is wrong with a cell before its first step?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nangrid.cell.build import Cell
from nangrid.cell.checkpoint import locate_checkpoint
from nangrid.cell.config import Config
from nangrid.watch import Finding, preflight, settings_of


def look_over(cell: Cell, config: Config, *, trial: bool) -> list[Finding]:
    """Of a cell that is built. `trial` costs a step, which a cell's own first step saves."""
    settings = replace(settings_of(cell.trainer.args), first_new_id=cell.data.base_vocab_size, texts=cell.data.texts)
    folder = Path(locate_checkpoint(config.model).path)
    quantised = folder if trial and config.quant.name != "none" and folder.is_dir() else None
    return preflight(cell.model, cell.data.train, settings, checkpoint=quantised, trial=trial)
