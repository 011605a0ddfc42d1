import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nangrid.records.errors import RecordError
from nangrid.records.history import COLUMNS, HISTORY, read_history, write_history


@settings(deadline=None)
@given(losses=st.lists(st.none() | st.floats(), max_size=5))
def test_nan_infinity_and_null_differ(losses: list[float | None], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("cell")
    write_history(directory, [{"step": step, "loss": loss} for step, loss in enumerate(losses)])
    again = [None if loss is pd.NA else loss for loss in read_history(directory)["loss"]]
    assert repr(again) == repr(losses)


def test_isna_is_true_for_null_only(tmp_path: Path) -> None:
    write_history(tmp_path, [{"loss": math.nan}, {"loss": None}, {"loss": math.inf}])
    assert read_history(tmp_path)["loss"].isna().tolist() == [False, True, False]


def test_every_column_has_its_type(tmp_path: Path) -> None:
    write_history(tmp_path, [{"step": 0, "nonfinite_optimizer_state": 4, "lr": 0}])
    history = read_history(tmp_path)
    assert list(history.columns) == list(COLUMNS)
    assert history["nonfinite_optimizer_state"].tolist() == [4]
    assert history["lr"].tolist() == [0.0]


def test_misspelt_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such history column: los"):
        write_history(tmp_path, [{"step": 0, "los": 1.0}])
    assert not any(tmp_path.iterdir())


def test_damaged_history_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=HISTORY):
        read_history(tmp_path)
    write_history(tmp_path, [{"step": 0}])
    path = tmp_path / HISTORY
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecordError, match=HISTORY):
        read_history(tmp_path)
    pd.DataFrame({"step": [0]}).to_parquet(path)
    with pytest.raises(RecordError, match="its columns differ from this nangrid's: eval_loss, grad_norm"):
        read_history(tmp_path)
