"""The committed records of the early-warning benchmark give the committed table."""

from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
OURS = ("gradient norm > 10 x its median", "growth of the largest gradient (nangrid)")
"""The two rows that take a second and do not need trainscope."""


def test_the_records_give_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import early_warning

    monkeypatch.setattr(early_warning, "DETECTORS", {name: early_warning.DETECTORS[name] for name in OURS})
    cells = list(early_warning.unpack(early_warning.RECORDS))
    rows = early_warning.table(early_warning.judge(cells))
    assert len(rows) == 2 + len(OURS)
    assert set(rows) <= set((BENCH / "results" / "early_warning.md").read_text().splitlines())
