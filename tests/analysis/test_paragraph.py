from collections.abc import Callable

import pytest

from nangrid.analysis.verdict import paragraph
from nangrid.records.cell import CellError, CellRecord


@pytest.mark.parametrize(
    ("finite", "crashed", "shown"),
    [
        (1, 0, "The run stayed finite for 16 steps; what happens later is not known."),
        (2, 0, "All 2 runs stayed finite for 16 steps; what happens later is not known."),
        (1, 1, "One run stayed finite for 16 steps; what happens later is not known. 1 crashed"),
        (0, 2, "No run can be judged. 2 crashed or timed out and are not counted."),
    ],
)
def test_runs_without_an_event_are_counted(
    finite: int, crashed: int, shown: str, make_record: Callable[..., CellRecord]
) -> None:
    error = CellError("RuntimeError", "no", "")
    records = [make_record() for _ in range(finite)] + [make_record(error=error, status="error")] * crashed
    assert paragraph(records, []).startswith(shown)
