import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks import MARKER, SECRET, Attack
from sound_cell import write_cell

from nangrid.records.grid import GridDirectory

MakeGrid = Callable[[dict[str, Attack]], dict[str, Path]]


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET[::-1])
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that no command may read or write."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text(MARKER)
    return folder


@pytest.fixture
def hostile(tmp_path: Path, outside: Path) -> MakeGrid:
    """A grid of four sound cells, and of one more for each attack; attack -> cell."""

    def make(attacks: dict[str, Attack]) -> dict[str, Path]:
        grid = GridDirectory.open(tmp_path / "grid")
        for seed in range(4):
            write_cell(grid, seed)
        cells = {name: write_cell(grid, 101 + 2 * number) for number, name in enumerate(attacks)}
        for name, cell in cells.items():
            shutil.rmtree(outside)
            outside.mkdir()
            attacks[name](cell, outside)
        (outside / "secret.txt").write_text(MARKER)
        return cells

    return make
