import math
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nangrid import NonFiniteError, Watch
from nangrid.cell.outcome import FinishedRun, finish
from nangrid.watch import Headroom
from nangrid.watch.ledger import read_model


def test_a_cell_whose_autopsy_cannot_be_written_has_no_record(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = nn.Linear(4, 1)
    watch = Watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "file" / "cell")

    def closure() -> Tensor:
        loss: Tensor = model(torch.full((2, 4), math.inf)).sum()
        loss.backward()
        return loss

    with pytest.raises(NonFiniteError):
        watch.step(closure)
    run = FinishedRun(watch, read_model(model, None), Headroom(model))
    with pytest.raises(NotADirectoryError):
        finish(run, tmp_path, time.perf_counter(), 4, "")
