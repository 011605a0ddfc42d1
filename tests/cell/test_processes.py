"""Cells of two processes: the same arithmetic as one process with twice the batch, and the same bits when run again."""

from pathlib import Path

import numpy as np
import pandas as pd
from test_run import Grid


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    common = ["model.layers=2", "init=mean", "dtype=fp32", "quant=none", "horizon=3", "data.eval_every=2"]
    one = Grid(tmp_path / "one", *common, "data.batch=2")
    two = Grid(tmp_path / "two", *common, "data.batch=1", "processes=2", "targets.dropout=0,0.1")
    again = Grid(tmp_path / "again", *common, "data.batch=1", "processes=2", "targets.dropout=0.1")
    without, dropout = (two.cell(**{"targets.dropout": level}) for level in (0.0, 0.1))

    assert without.factors["processes"] == 2 and "processes" not in one.records[0].factors
    alone, together = one.history(one.records[0]), two.history(without)
    columns = ["loss", "grad_norm", "max_gradient", "max_update"]
    np.testing.assert_allclose(together[columns].astype(float), alone[columns].astype(float), rtol=1e-3)
    assert together["new_tokens"].tolist() == alone["new_tokens"].tolist()
    assert without.trains.loss_first == together["loss"][0]

    pd.testing.assert_frame_equal(again.history(again.records[0]), two.history(dropout), check_exact=True)
    assert again.records[0].cell_id == dropout.cell_id != without.cell_id
