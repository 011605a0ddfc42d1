import pandas as pd
import pytest

# Freireich et al. 1963: remission of leukaemia in weeks under 6-MP, "+" censored; the textbooks' example.
SIX_MP = "6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+"
PLACEBO = "1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23"


@pytest.fixture
def freireich() -> pd.DataFrame:
    rows = [(group, text) for group, texts in (("6-MP", SIX_MP), ("placebo", PLACEBO)) for text in texts.split()]
    return pd.DataFrame(
        {
            "drug": [group for group, _ in rows],
            "time": [int(text.rstrip("+")) for _, text in rows],
            "event": pd.array([None if text.endswith("+") else "relapse" for _, text in rows], "string"),
            "flagged": False,
        }
    )
