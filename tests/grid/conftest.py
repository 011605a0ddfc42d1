from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from nangrid.cell.config import factors
from nangrid.cell.identity import hash_science
from nangrid.grid import plan, process, worker
from nangrid.grid.plan import CellPlan


@pytest.fixture(autouse=True)
def fake_cells(monkeypatch: pytest.MonkeyPatch, heeded_signals: None) -> None:
    """Cells are forked as ever, but run tests/grid/fake_cell.py, and need neither model nor data."""
    monkeypatch.setattr(worker, "CELL_MODULE", "fake_cell")
    monkeypatch.setattr(process, "PRELOAD", ("nangrid.grid.worker",))
    monkeypatch.setattr(plan, "cell_id", lambda config: hash_science(factors(config)))


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[..., CellPlan]:
    from fake_cell import plan_in

    return partial(plan_in, tmp_path / "grid")
