"""Times to onset: against statsmodels to 1e-9, and against published tables."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.duration.survfunc import SurvfuncRight

from nangrid.analysis.survival import common_horizon, durations, incidence, restricted_mean, survival_curves


def test_kaplan_meier_has_the_published_values(freireich: pd.DataFrame) -> None:
    curves = survival_curves(freireich, "drug").set_index(["level", "time"])["survival"]
    published = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    assert {time: round(curves["6-MP", time], 3) for time in published} == published


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=30), st.integers(1, 15))
def test_the_restricted_mean_is_the_area_under_statsmodels_curve(cells: list[tuple[int, bool]], horizon: int) -> None:
    time, happened = (np.array(column) for column in zip(*cells, strict=True))
    curve = SurvfuncRight(time, happened.astype(int))
    area = sum(
        (curve.surv_prob[curve.surv_times <= step][-1] if (curve.surv_times <= step).any() else 1.0)
        for step in range(horizon)
    )
    assert restricted_mean(time, happened, horizon)[0] == pytest.approx(area, abs=1e-9)


def test_without_early_censoring_it_is_the_mean_of_steps_survived() -> None:
    time, happened = np.array([0, 3, 16, 16]), np.array([True, True, False, False])
    assert restricted_mean(time, happened, 16)[0] == pytest.approx(np.minimum(time, 16).mean(), abs=1e-12)


def test_weights_count_cells_as_often_as_they_say() -> None:
    time, happened = np.array([0, 5, 9]), np.array([True, True, False])
    weighted = restricted_mean(time, happened, 10, np.array([[2.0, 0.0, 1.0]]))
    assert weighted[0] == pytest.approx(restricted_mean(time[[0, 0, 2]], happened[[0, 0, 2]], 10)[0], abs=1e-12)


def test_shares_of_competing_events_add_up() -> None:
    times = pd.DataFrame(
        {
            "dtype": ["fp16"] * 4,
            "time": [0, 1, 2, 8],
            "event": pd.array(["overflow", "underflow", "overflow", None], "string"),
            "flagged": False,
        }
    )
    shares = incidence(times, "dtype").set_index("event")
    assert shares["met"].to_dict() == {"overflow": 2, "underflow": 1}
    assert shares["share"].to_dict() == pytest.approx({"overflow": 0.5, "underflow": 0.25})


def test_a_level_that_met_the_second_event_alone_has_its_share_there() -> None:
    times = pd.DataFrame(
        {
            "dtype": ["a", "a", "b", "b"],
            "time": [0, 4, 0, 4],
            "event": pd.array(["first", None, "second", None], "string"),
            "flagged": False,
        }
    )
    shares = incidence(times, "dtype").set_index(["level", "event"])["share"]
    assert shares["a", "first"] == 0.5 and shares["a", "second"] == 0.0
    assert shares["b", "first"] == 0.0 and shares["b", "second"] == 0.5


def onsets(**columns: object) -> pd.DataFrame:
    defaults = {
        "dtype": "fp16", "status": "finite", "onset_clock": None, "steps_survived": 16, "first_step": 0,
        "frozen_from": None, "mechanism": None,
    }  # fmt: skip
    kinds = {"onset_clock": "string", "mechanism": "string", "frozen_from": "Int64"}
    return pd.DataFrame([defaults | columns]).astype(kinds)


def test_what_ends_a_cell() -> None:
    failed = {"status": "nonfinite", "onset_clock": "loss", "steps_survived": 3}
    assert durations(onsets(**failed, mechanism="divergence")).loc[0, ["time", "event"]].tolist() == [3, "divergence"]
    assert durations(onsets(**failed)).loc[0, "event"] == "unexplained loss"
    frozen = durations(onsets(frozen_from=2))
    assert frozen.loc[0, ["time", "event"]].tolist() == [2, "infinite-norm-freeze"]
    finite = durations(onsets())
    assert finite.loc[0, "time"] == 16 and pd.isna(finite.loc[0, "event"]) and not finite.loc[0, "flagged"]
    crashed = durations(onsets(status="error", steps_survived=5))
    assert crashed.loc[0, "time"] == 5 and pd.isna(crashed.loc[0, "event"]) and crashed.loc[0, "flagged"]


def test_the_horizon_that_all_finite_cells_reached() -> None:
    table = pd.concat([onsets(steps_survived=32), onsets(), onsets(status="timeout", steps_survived=2)])
    assert common_horizon(durations(table)) == 16
