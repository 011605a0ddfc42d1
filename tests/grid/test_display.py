import io
from collections.abc import Callable

import pytest

from nangrid.grid.display import NOTEBOOK, GridDisplay
from nangrid.grid.plan import CellPlan
from nangrid.reporting.console import CleanConsole


@pytest.mark.parametrize("notebook", [False, True])
def test_bars_are_drawn_in_a_terminal_but_not_in_a_notebook(
    notebook: bool, make_plan: Callable[..., CellPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NOTEBOOK, "1") if notebook else monkeypatch.delenv(NOTEBOOK, raising=False)
    terminal = io.StringIO()
    plan = make_plan(0)
    with GridDisplay(1, CleanConsole(force_terminal=True, file=terminal)) as display:
        display.begin(plan)
        display.finish(plan, "finite for 16 steps")
    shown = terminal.getvalue()
    assert "finite for 16 steps" in shown and ("\x1b[2K" in shown) == (not notebook)
