"""The rules by which an autopsy says how sure it is."""

from typing import Any

import pytest
from autopsies import make_autopsy

from nangrid.records.autopsy import Trial
from nangrid.records.explain.certainty import Grade, mechanism_certainty, origin_certainty

FINITE, FAILING = [Trial("in float32", True)], [Trial("in float32", False)]


@pytest.mark.parametrize(
    ("changes", "origin", "mechanism"),
    [
        ({"ablated": True, "cures": FINITE}, Grade.PROVEN, Grade.PROVEN),
        ({"ablated": None, "cures": FINITE}, Grade.PROVEN, Grade.PROVEN),
        ({"ablated": True, "cures": FAILING}, Grade.PROVEN, Grade.LIKELY),
        ({"ablated": True, "rivals": 3, "cures": FINITE}, Grade.PROVEN, Grade.PROVEN),
        ({"ablated": True, "rivals": 1, "cures": FAILING}, Grade.PROVEN, Grade.LIKELY),
        ({"ablated": True, "cures": FINITE, "mechanism": "divergence"}, Grade.PROVEN, Grade.LIKELY),
        ({"ablated": True, "mechanism": "unknown"}, Grade.PROVEN, Grade.UNKNOWN),
        ({"ablated": False}, Grade.LIKELY, Grade.LIKELY),
        ({"ablated": None}, Grade.LIKELY, Grade.LIKELY),
        ({"ablated": True, "cures": FINITE, "reproduced": False}, Grade.LIKELY, Grade.LIKELY),
        ({"op": "", "mechanism": "unknown"}, Grade.UNKNOWN, Grade.UNKNOWN),
        ({"op": "", "preexisting": "x", "ablated": True, "mechanism": "nonfinite-data"}, Grade.PROVEN, Grade.LIKELY),
    ],
)  # fmt: skip
def test_the_grade_follows_from_the_experiments(changes: dict[str, Any], origin: Grade, mechanism: Grade) -> None:
    autopsy = make_autopsy(**changes)
    assert origin_certainty(autopsy).grade == origin
    assert mechanism_certainty(autopsy).grade == mechanism
