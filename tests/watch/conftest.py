import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test of the watch draws the same random numbers."""
    torch.manual_seed(0)
