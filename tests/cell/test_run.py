"""What a grid of real cells (tiny model, real Trainer, real bitsandbytes) records, to the last bit."""

from pathlib import Path

import pandas as pd
import pytest

from nangrid.cell import device
from nangrid.cell.build import build_cell
from nangrid.cell.config import Config
from nangrid.cell.device import refuse_unsupported
from nangrid.cell.levels import as_config
from nangrid.commands import compose
from nangrid.commands.run import main
from nangrid.records.cell import CellRecord, Onset
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory
from nangrid.records.headroom import read_headroom
from nangrid.records.history import read_history
from nangrid.watch.autopsy.examine import is_compiled

Factors = tuple[str, ...]


def composed(*overrides: str) -> Config:
    return as_config(compose.composed(["model=tiny", *overrides]))


class Grid:
    """The cells of a finished grid, found by their levels."""

    def __init__(self, out: Path, *arguments: str) -> None:
        assert main(["-m", "model=tiny", "tracker=none", f"out={out}", *arguments]) == 0
        self.directory = GridDirectory.open(out)
        self.records, errors = self.directory.records()
        assert errors == []

    def cell(self, **levels: object) -> CellRecord:
        (match,) = (r for r in self.records if all(r.factors[k] == v for k, v in levels.items()))
        return match

    def history(self, record: CellRecord) -> pd.DataFrame:
        """History of a cell without its timings."""
        return read_history(self.directory.cell(record.cell_id)).drop(columns="seconds")


def test_cells_are_bit_identical_in_any_order_and_in_parallel(tmp_path: Path) -> None:
    common = ["model.layers=2", "init=mean", "seed=1", "horizon=3"]
    one = Grid(tmp_path / "one", *common, "dtype=bf16,fp32")
    two = Grid(tmp_path / "two", *common, "dtype=fp32,bf16", "hydra.launcher.n_jobs=2")
    for record in one.records:
        twin = two.cell(dtype=record.factors["dtype"])
        pd.testing.assert_frame_equal(one.history(record), two.history(twin), check_exact=True)


def test_what_must_not_change_a_bit_changes_none(tmp_path: Path) -> None:
    common = ["model.layers=2", "targets.dropout=0.1", "horizon=4", "hydra.launcher.n_jobs=2"]
    levels = Grid(tmp_path / "levels", *common, "checkpointing=on,off,reentrant")
    evaluated = Grid(tmp_path / "evaluated", *common, "data.eval_every=1")
    shorter = Grid(tmp_path / "shorter", *common, "horizon=2")
    blind = Grid(tmp_path / "blind", *common, "headroom=0")
    sampling = Grid(tmp_path / "sampling", *common, "headroom=1")
    on = levels.history(levels.cell(checkpointing="on"))
    assert on["loss"].nunique() == 4
    for level in ("off", "reentrant"):
        other = levels.cell(checkpointing=level)
        assert other.trains.without_gradient == []
        pd.testing.assert_frame_equal(levels.history(other), on, check_exact=True)

    for other_grid in (blind, sampling):
        pd.testing.assert_frame_equal(other_grid.history(other_grid.records[0]), on, check_exact=True)
    samples = read_headroom(sampling.directory.cell(sampling.records[0].cell_id))
    assert samples is not None and set(samples["step"]) == {0, 1, 2, 3}
    assert read_headroom(blind.directory.cell(blind.records[0].cell_id)) is None

    with_eval = evaluated.history(evaluated.records[0])
    assert with_eval["eval_loss"].notna().all()
    pd.testing.assert_frame_equal(with_eval.drop(columns="eval_loss"), on.drop(columns="eval_loss"), check_exact=True)
    pd.testing.assert_frame_equal(shorter.history(shorter.records[0]), on.head(2), check_exact=True)


def test_glossary_with_zero_rows_fails_in_any_dtype(tmp_path: Path) -> None:
    common = ["data=glossary", "data.bos=false", "dtype=bf16,fp32", "horizon=2", "hydra.launcher.n_jobs=2"]
    deep = Grid(tmp_path / "deep", *common, "init=zero,mean")
    for dtype in ("bf16", "fp32"):
        assert deep.cell(dtype=dtype, init="zero").onset == Onset(0, "gradient")
        assert deep.cell(dtype=dtype, init="mean").status == "finite"
    autopsies = [*deep.directory.autopsies(deep.records).values()]
    shallow = Grid(tmp_path / "shallow", *common, "init=zero", "model.layers=4")
    for record in shallow.records:
        assert record.onset is None
        assert record.trains.frozen_from == 0
        assert record.trains.max_update == 0
        assert not record.trained
        assert "frozen" in (shallow.directory.path / "onsets.csv").read_text()
    frozen = [*shallow.directory.autopsies(shallow.records).values()]
    for autopsy in frozen:
        assert (autopsy.phase, autopsy.kind, autopsy.mechanism) == ("backward", "overflow", "infinite-norm-freeze")
    for autopsy in autopsies + frozen:
        assert [suggestion.override for suggestion in autopsy.suggestions] == ["init=mean", "data.bos=true"]


def test_levels_of_attention_and_compilation(tmp_path: Path) -> None:
    common = ["model.layers=1", "init=mean", "horizon=1", "headroom=0"]
    grid = Grid(tmp_path, *common, "model.attn=sdpa,math,flash")
    shown = {record.factors["model.attn"]: record.ledger["arithmetic"]["attention"] for record in grid.records}
    assert shown == {"sdpa": "sdpa", "math": "sdpa (math)", "flash": "sdpa (flash)"}
    default, flash = (grid.history(grid.cell(**{"model.attn": level})) for level in ("sdpa", "flash"))
    pd.testing.assert_frame_equal(default, flash, check_exact=True)  # the kernel that torch chooses on a CPU
    compiled = composed("model.compile=inductor", *common)
    assert is_compiled(build_cell(compiled, tmp_path).model)
    with pytest.raises(InputError, match=r"type model\.attn=math or model\.attn=flash"):
        refuse_unsupported(composed("model.attn=cudnn"))


def test_several_processes_are_refused_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_has_cuda", lambda: True)
    with pytest.raises(InputError, match="trains on the CPU alone"):
        refuse_unsupported(composed("processes=2"))
    refuse_unsupported(composed())


def test_ledger_records_what_a_factor_changed(tmp_path: Path) -> None:
    grid = Grid(tmp_path, "upcast=none,trainable", "dtype=bf16,fp32", "vocab=none", "model.layers=2", "horizon=1")
    cast = grid.cell(dtype="bf16", upcast="trainable").ledger
    assert set(cast["adapter"].values()) == {"float32"}
    assert cast["changed"]["upcast"] > 0
    assert grid.cell(dtype="bf16", upcast="none").ledger["adapter"]["q_proj"] == "bfloat16"
    idle = grid.cell(dtype="fp32", upcast="trainable").ledger["warnings"]
    assert any("upcast=trainable has no effect" in line for line in idle)
    assert any("init=zero has no effect" in line for line in idle)


@pytest.mark.parametrize(
    "override",
    [
        "optim=adamw_8bit,paged_adamw_32bit,adamw_torch_fused,adafactor,sgd",
        "quant=fp4,int8,none",
        "upcast=kbit targets=qv,all_linear",
        "vocab=add_tokens init=normal,mvn",
        "data.packing=false data.padding_side=left,right",
        "dtype=amp_bf16,silent_fp16 init=mean model.attn=eager",
        "data.accumulation=2 optim.clip=0,0.5 optim.warmup=1",
    ],
)
def test_every_level_trains(override: str, tmp_path: Path) -> None:
    grid = Grid(tmp_path, "horizon=2", "model.layers=2", *override.split(), "hydra.launcher.n_jobs=2")
    for record in grid.records:
        assert record.status == "finite", record.overrides
        assert record.trains.without_gradient == []
        moved = record.trains.max_update
        assert moved is not None and moved > 0


@pytest.mark.real
def test_real_gemma_in_half_precision_overflows_in_the_first_forward_pass(tmp_path: Path) -> None:
    arguments = ["-m", "dtype=fp16,silent_fp16", "horizon=2", "tracker=none", f"out={tmp_path}"]
    assert main([*arguments, "hydra.launcher.n_jobs=2"]) == 0
    records, _ = GridDirectory.open(tmp_path).records()
    by_dtype = {record.factors["dtype"]: record for record in records}
    assert by_dtype["fp16"].onset == Onset(0, "loss")
    silent = by_dtype["silent_fp16"]
    new_tokens = read_history(tmp_path / "cells" / silent.cell_id)["new_tokens"]
    assert silent.onset == Onset(int((new_tokens > 0).argmax()), "gradient")
    assert silent.peak_rss_bytes < 6 * 2**30


def test_failing_cell_leaves_an_autopsy_that_checkpointing_does_not_change(tmp_path: Path) -> None:
    grid = Grid(tmp_path, "data=glossary", "data.bos=false", "checkpointing=on,off,reentrant", "horizon=2")
    autopsies = grid.directory.autopsies(grid.records)
    assert len(autopsies) == 3
    assert all(autopsy.reproduced and autopsy.untrained for autopsy in autopsies.values())
    assert {a.mechanism for a in autopsies.values()} == {"zero-row-norm-gradient"}
    assert len({(a.phase, a.kind, a.op, a.module, a.source, tuple(a.parameters)) for a in autopsies.values()}) == 1
    assert all(token.is_new for autopsy in autopsies.values() for token in autopsy.tokens)
