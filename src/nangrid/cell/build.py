"""How is a cell put together, in the order a user's script does it, and is it what was asked for?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from peft import PeftModel

from nangrid.cell.config import Config
from nangrid.cell.data.dataset import CellData, load_data
from nangrid.cell.model import arithmetic
from nangrid.cell.model.adapters import add_adapters
from nangrid.cell.model.base import DTYPES, check_length, device, load_model
from nangrid.cell.model.checkpoint import locate_checkpoint
from nangrid.cell.model.embedding_rows import add_rows
from nangrid.cell.model.targets import find_targets, renamed
from nangrid.cell.trainer import CellTrainer, make_deterministic, make_trainer
from nangrid.watch import Finding, Ledger, preflight
from nangrid.watch.autopsy.examine import Background
from nangrid.watch.ledger import observe_residual, read_arithmetic, read_model
from nangrid.watch.preflight import settings_of
from nangrid.watch.state.tensors import dtype_name


@dataclass
class Cell:
    """A cell ready to train."""

    model: PeftModel
    data: CellData
    trainer: CellTrainer
    ledger: Ledger


def build_cell(config: Config, directory: Path) -> Cell:
    """Model, quantisation, vocabulary, rows, adapters, trainer; the ledger is read off the result."""
    half_products = arithmetic.install()
    make_deterministic(config)
    checkpoint = locate_checkpoint(config.model)
    data = load_data(config, checkpoint)
    base = load_model(config, checkpoint)
    check_length(base, config.data.length)
    targets = find_targets(base, config.targets.modules)
    rows = add_rows(base, data.base_vocab_size, len(data.new_tokens), config.init)
    model, upcast = add_adapters(base, config, dict.fromkeys(chain.from_iterable(targets.values())))
    ledger = read_model(model, DTYPES.get(config.dtype.autocast))
    ledger.arithmetic = read_arithmetic(device(), vars(half_products) if device() == "cpu" else None)
    ledger.arithmetic["attention"] = base.config._attn_implementation
    ledger.changed = {"init": rows, "upcast": upcast}
    ledger.warnings = [*differences(config, ledger), *renamed(base, targets)]
    observe_residual(model, ledger)
    return Cell(model, data, make_trainer(model, data, config, directory), ledger)


def differences(config: Config, ledger: Ledger) -> list[str]:
    """One line for each thing that was asked for and did not come about."""
    asked = config.dtype
    lines = []
    if not ledger.changed["init"]:
        lines.append(f"init={config.init.name} changed nothing: vocab={config.vocab.name} adds no token")
    if config.upcast.name != "none" and not ledger.changed["upcast"]:
        lines.append(f"upcast={config.upcast.name} changed nothing: all it would cast is float32 already")
    if config.upcast.name != "kbit":
        lines += _differs("dtype.storage", asked.storage, ledger.storage)
    if config.quant.name in ("nf4", "fp4"):
        lines += _differs("dtype.compute", asked.compute, ledger.compute)
    elif asked.compute != asked.storage:
        lines.append(f"dtype.compute={asked.compute} changed nothing with quant={config.quant.name}")
    if asked.adapter != "base" and config.upcast.name != "trainable":
        for kind, found in ledger.adapter.items():
            lines += _differs(f"dtype.adapter of {kind}", asked.adapter, found)
    return lines


def _differs(what: str, asked: str, found: str) -> list[str]:
    wanted = dtype_name(DTYPES[asked])
    return [] if found == wanted else [f"{what}: asked for {wanted}, the model has {found}"]


def background(config: Config, data: CellData) -> Background:
    """What an autopsy needs to know of the cell beyond its model."""
    storage = dtype_name(DTYPES[config.dtype.storage])
    return Background(texts=data.texts, first_new_id=data.base_vocab_size, requested_storage=storage)


def look_over(cell: Cell, config: Config, *, trial: bool) -> list[Finding]:
    """Of a cell that is built. `trial` costs a step, which a cell's own first step saves."""
    settings = replace(settings_of(cell.trainer.args), first_new_id=cell.data.base_vocab_size, texts=cell.data.texts)
    folder = Path(locate_checkpoint(config.model).path)
    quantised = folder if trial and config.quant.name != "none" and folder.is_dir() else None
    return preflight(cell.model, cell.data.train, settings, checkpoint=quantised, trial=trial)
