from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import pytest

from nangrid.cell.config import factors
from nangrid.cell.identity import hash_science
from nangrid.grid import plan, process, worker
from nangrid.grid.plan import CellPlan


@pytest.fixture(autouse=True, scope="package")
def no_bare_fork_server_is_left() -> Iterator[None]:
    """Stop the server that has imported nothing: later tests would import torch anew for each of their cells."""
    yield
    vars(forkserver)["_forkserver"]._stop()


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
