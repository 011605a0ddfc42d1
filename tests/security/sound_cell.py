"""Writes a finished cell with all its records, for attacks and mutations to change."""

from pathlib import Path

from fake_cell import plan_in

from nangrid.grid.request import write_request
from nangrid.records.autopsy import Autopsy, OutputRecord, Suggestion, TensorRecord, write_autopsy
from nangrid.records.cell import CLOCKS, CellRecord, Seconds, Trains, earliest_onset, write_record
from nangrid.records.grid import GridDirectory
from nangrid.records.history import write_history

AUTOPSY = Autopsy(
    step=1, clock="loss", phase="forward", kind="overflow", op="aten.add.Tensor", module="model.layers.7",
    source="modeling_gemma3.py:416", node="", micro_batch=0, dtype="float16", dtype_max=65504.0,
    inputs=[TensorRecord("self", [2, 64], "float16", 5.4e4, 0, 0)],
    output=OutputRecord([2, 64], "float16", 0, 2, [0, 1]), path=["aten.add.Tensor"], tokens=[], parameters=[],
    mechanism="fp16-activation-overflow", explanation="An activation passed 65504.", evidence=["seen"],
    suggestions=[Suggestion("dtype=bf16", "dtype=bf16")], reproduced=True, untrained=True,
)  # fmt: skip


def write_cell(grid: GridDirectory, seed: int) -> Path:
    """A finished cell with all its records: of even seeds a finite one, of odd seeds one with an autopsy."""
    plan = plan_in(grid.path, seed)
    write_request(plan, grid.grid_id)
    cell = plan.directory()
    failed = seed % 2 == 1
    factors = {"seed": seed // 2, "model": "tiny", "dtype": "fp16" if failed else "bf16"}
    clocks: dict[str, int | None] = dict.fromkeys(CLOCKS) | ({"loss": 1} if failed else {})
    record = CellRecord(
        cell_id=cell.name,
        grid_id=grid.grid_id,
        overrides=[f"dtype={factors['dtype']}", f"seed={seed // 2}"],
        factors=factors,
        status="nonfinite" if failed else "finite",
        horizon=16,
        steps_done=2 if failed else 16,
        censored=not failed,
        onset=earliest_onset(clocks),
        clocks=clocks,
        trains=Trains(None, [], 1e-3, 3.96, 3.41),
        ledger={"storage": "bf16", "warnings": [], "layers": 12},
        environment={"torch": "2.13.0"},
        autopsy="autopsy.json" if failed else None,
        snapshot=None,
        seconds=Seconds(4.0, 20.0, 0.0),
        peak_rss_bytes=2**31,
        error=None,
    )
    write_history(cell, [{"step": step, "loss": 4.0, "grad_norm": 1.0} for step in range(record.steps_done)])
    write_autopsy(cell, AUTOPSY)
    (cell / "snapshot.json").write_text('{"step": 1}')
    write_record(cell, record)
    return cell
