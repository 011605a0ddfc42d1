"""Builds a cell in the order in which a user's script does, and checks that it is what was requested."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from peft import PeftModel

from nangrid.cell.config import KERNELS, Config, factors, to_override
from nangrid.cell.data.dataset import CellData, load_data
from nangrid.cell.identity import starred
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
    """A cell that is ready to train."""

    model: PeftModel
    data: CellData
    trainer: CellTrainer
    ledger: Ledger


def build_cell(config: Config, directory: Path) -> Cell:
    """Build model, quantisation, vocabulary, rows, adapters and trainer; the ledger is read from the result."""
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
    if config.model.attn in KERNELS:
        ledger.arithmetic["attention"] += f" ({config.model.attn})"
    ledger.changed = {"init": rows, "upcast": upcast}
    ledger.warnings = [*unmet_requests(config, ledger), *renamed(base, targets)]
    if config.model.compile == "off":
        observe_residual(model, ledger)
    else:  # hooks would change what is fused, and so what fails
        model.compile(backend=config.model.compile)
    return Cell(model, data, make_trainer(model, data, config, directory), ledger)


def unmet_requests(config: Config, ledger: Ledger) -> list[str]:
    """One line per request that had no effect, or not the requested one."""
    requested = config.dtype
    lines = []
    if not ledger.changed["init"]:
        lines.append(f"init={config.init.name} has no effect: vocab={config.vocab.name} adds no tokens")
    if config.upcast.name != "none" and not ledger.changed["upcast"]:
        lines.append(f"upcast={config.upcast.name} has no effect: everything it casts is float32 already")
    if config.upcast.name != "kbit":
        lines += _differs("dtype.storage", requested.storage, ledger.storage)
    if config.quant.name in ("nf4", "fp4"):
        lines += _differs("dtype.compute", requested.compute, ledger.compute)
    elif requested.compute != requested.storage:
        lines.append(f"dtype.compute={requested.compute} has no effect with quant={config.quant.name}")
    if requested.adapter != "base" and config.upcast.name != "trainable":
        for kind, actual in ledger.adapter.items():
            lines += _differs(f"dtype.adapter of {kind}", requested.adapter, actual)
    return lines


def _differs(what: str, requested: str, actual: str) -> list[str]:
    wanted = dtype_name(DTYPES[requested])
    return [] if actual == wanted else [f"{what}: requested {wanted}, but the model has {actual}"]


def background(config: Config, data: CellData) -> Background:
    """What an autopsy needs to know of the cell, apart from its model."""
    storage = dtype_name(DTYPES[config.dtype.storage])
    first_new = data.base_vocab_size if data.new_tokens else None
    levels = {to_override(key, value) for key, value in factors(config, starred(config)).items()}
    return Background(data.texts, first_new, storage, levels=levels)


def check_cell(cell: Cell, config: Config, *, trial: bool) -> list[Finding]:
    """Preflight findings of a built cell. `trial` also takes one step and undoes it, to see which trainables learn."""
    settings = replace(settings_of(cell.trainer.args), first_new_id=cell.data.base_vocab_size, texts=cell.data.texts)
    folder = Path(locate_checkpoint(config.model).path)
    quantised = folder if trial and config.quant.name != "none" and folder.is_dir() else None
    return preflight(cell.model, cell.data.train, settings, checkpoint=quantised, trial=trial)
