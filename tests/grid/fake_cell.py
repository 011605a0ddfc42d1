"""The one fake of the grid's tests: a run_cell that behaves, raises, dies or hangs as its seed says."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from nangrid.cell.config import (
    CheckpointingConfig,
    Config,
    DataConfig,
    DtypeConfig,
    InitConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    TargetsConfig,
    TrackerConfig,
    UpcastConfig,
    VocabConfig,
    factors,
)
from nangrid.cell.identity import cell_factors, hash_science
from nangrid.cell.levels import as_config
from nangrid.grid.plan import CellPlan
from nangrid.records.cell import CLOCKS, CellRecord, Onset, Seconds, Trains, write_record
from nangrid.records.errors import InputError
from nangrid.records.history import write_history

FINITE, NONFINITE, RAISES, EXITS, KILLED, HANGS, REFUSES, EATS_MEMORY, FULL_DISK, SEGFAULTS = range(10)


def run_cell(
    config: Config,
    directory: Path,
    *,
    cell_id: str,
    grid_id: str,
    overrides: list[str],
    on_step: Callable[[int, float], None],
) -> CellRecord:
    print("said by python")
    os.system("echo said by a grandchild")
    with starts_file(directory).open("a") as file:
        file.write(f"{os.getpid()}\n")
    on_step(0, 1.5)
    if config.seed == RAISES:
        raise RuntimeError("matrices do not fit")
    if config.seed == EXITS:
        os._exit(9)
    if config.seed == KILLED:
        print("about to die", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == SEGFAULTS:
        os.kill(os.getpid(), signal.SIGSEGV)
    if config.seed == HANGS:
        time.sleep(60)
    if config.seed == REFUSES:
        raise InputError("vocab.size=9999 is more than the data yields: take vocab.size=10.")
    if config.seed == EATS_MEMORY:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
    if config.seed == FULL_DISK:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory / "history.parquet"))
    record = _record(config, cell_id, grid_id, overrides)
    write_history(directory, [{"step": step, "loss": 1.5} for step in range(record.steps_done)])
    write_record(directory, record)
    return record


def starts_file(cell: Path) -> Path:
    """Where each attempt notes its process; outside of the cell's directory, which an attempt empties."""
    return cell.parents[1] / f"starts-{cell.name}"


def _record(config: Config, cell_id: str, grid_id: str, overrides: list[str]) -> CellRecord:
    step = 2 if config.seed == NONFINITE else None
    return CellRecord(
        cell_id=cell_id,
        grid_id=grid_id,
        overrides=overrides,
        factors=cell_factors(config),
        status="finite" if step is None else "nonfinite",
        horizon=config.horizon,
        steps_done=config.horizon if step is None else step + 1,
        censored=step is None,
        onset=None if step is None else Onset(step, "gradient"),
        clocks=dict.fromkeys(CLOCKS) | {"gradient": step},
        trains=Trains(None, [], 1e-4, 3.0, 2.0),
        ledger={},
        environment={},
        autopsy=None,
        snapshot=None,
        seconds=Seconds(0.1, 0.1, 0.0),
        peak_rss_bytes=1,
        error=None,
    )


def plan_in(out: Path, seed: int = 0, **top_level: object) -> CellPlan:
    config = Config(
        seed=seed,
        out=str(out),
        model=ModelConfig("tiny", "tiny", layers=12),
        quant=QuantConfig("nf4"),
        dtype=DtypeConfig("bf16", "bf16", "bf16", "bf16", "none"),
        vocab=VocabConfig("spm"),
        init=InitConfig("zero"),
        targets=TargetsConfig("qv", ["q_proj", "v_proj"]),
        checkpointing=CheckpointingConfig("on"),
        optim=OptimConfig("sgd"),
        upcast=UpcastConfig("none"),
        data=DataConfig("pydoc"),
        tracker=TrackerConfig("none"),
    )
    checked = as_config(asdict(config) | top_level)
    return CellPlan(checked, [f"seed={seed}"], hash_science(factors(checked)))
