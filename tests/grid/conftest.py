import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from nangrid.cell.config import factors
from nangrid.cell.identity import hash_science
from nangrid.grid import child, isolation, plan
from nangrid.grid.plan import CellPlan

sys.path.append(str(Path(__file__).parent))  # for fake_cell, here and in the cells' processes


@pytest.fixture(autouse=True)
def fake_cells(monkeypatch: pytest.MonkeyPatch, heeded_signals: None) -> None:
    """Cells are forked as ever, but run tests/grid/fake_cell.py, and need neither model nor data."""
    monkeypatch.setattr(child, "CELL_MODULE", "fake_cell")
    monkeypatch.setattr(isolation, "PRELOAD", ("nangrid.grid.child",))
    monkeypatch.setattr(plan, "cell_id", lambda config: hash_science(factors(config)))


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[..., CellPlan]:
    from fake_cell import plan_in

    return partial(plan_in, tmp_path / "grid")
