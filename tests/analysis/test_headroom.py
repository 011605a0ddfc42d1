"""What would overflow where, and when."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from nangrid.analysis.headroom import first_overflow, forecast, room


def looks(*rows: tuple[int, int, str, str, float]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["step", "order", "module", "kind", "absmax"])
    return frame.assign(row=0, position=3, token=7, text="<bos>")


def test_room_is_bits_to_the_end_of_each_format() -> None:
    frame = room(looks((0, 0, "a", "activation", 65504.0), (10, 0, "a", "activation", 16376.0)))
    (only,) = frame.to_dict("records")
    assert only["fp16"] == 0 and only["step"] == 0 and only["bf16"] > 110


def test_the_least_room_comes_first() -> None:
    frame = room(looks((0, 0, "a", "activation", 1.0), (0, 1, "b", "activation", 1e5), (0, 1, "b", "gradient", 1e-3)))
    assert frame["module"].tolist() == ["b", "a", "b"] and frame["fp16"].iloc[0] < 0


def test_the_first_to_overflow_is_the_first_in_the_forward_pass_of_the_first_step() -> None:
    frame = looks(
        (0, 9, "late", "activation", 2e5),
        (0, 7, "early", "activation", 7e4),
        (0, 1, "first", "gradient", 1e9),
        (10, 2, "later", "activation", 1e9),
    )
    found = first_overflow(frame)
    assert found is not None and found["module"] == "early"


def test_gradients_overflow_from_the_end_of_the_model() -> None:
    frame = looks((0, 1, "bottom", "gradient", 1e9), (0, 9, "top", "gradient", 1e6))
    found = first_overflow(frame)
    assert found is not None and found["module"] == "top"
    assert first_overflow(looks((0, 1, "a", "activation", 5.0))) is None


def growing(rate: float, noise: float = 0.0, **more: Any) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    steps = range(0, 60, 10)
    return looks(*[(s, 0, "a", "activation", 100 * 2 ** (rate * s + noise * rng.standard_normal())) for s in steps])


def test_the_forecast_of_a_module_that_doubles() -> None:
    (found,) = forecast(growing(0.1)).to_dict("records")
    assert found["doubles_in"] == pytest.approx(10) and found["r2"] == pytest.approx(1)
    assert found["reaches_at"] == pytest.approx(np.log2(65504 / 100) * 10)


def test_what_is_steady_or_noisy_or_past_the_limit_has_no_forecast() -> None:
    assert forecast(growing(0.0)).empty and forecast(growing(-0.1)).empty
    assert forecast(growing(0.001, noise=3.0)).empty
    assert forecast(growing(0.5)).empty, "it is past the limit already"
    assert forecast(growing(0.1).head(3)).empty, "three looks are no trend"
