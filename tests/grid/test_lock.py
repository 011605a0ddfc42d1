"""A cell's directory is locked and emptied without a look at where its links lead."""

import os
from pathlib import Path

import pytest

from nangrid.grid.lock import acquire, is_held, release, set_aside
from nangrid.records.errors import InputError


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    return folder


def test_attempts_that_lead_outside_receive_nothing(tmp_path: Path, outside: Path) -> None:
    cell = tmp_path / "cell"
    cell.mkdir()
    (cell / "attempts").symlink_to(outside)
    (cell / "result.json").write_text("{}")
    set_aside(cell)
    assert not list(outside.iterdir())
    assert (cell / "attempts" / "0" / "result.json").is_file() and not (cell / "attempts").is_symlink()


def test_a_linked_cell_or_lock_is_refused(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "linked").symlink_to(outside)
    with pytest.raises(InputError, match="is a link to another directory"):
        acquire(tmp_path / "cells" / "linked")
    cell = tmp_path / "cell"
    cell.mkdir()
    (cell / "lock").symlink_to(outside / "lock")
    with pytest.raises(InputError, match="is no file"):
        acquire(cell)
    assert not is_held(cell) and not list(outside.iterdir())


def test_a_fifo_in_place_of_the_lock_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    assert not is_held(tmp_path)
    descriptor = acquire(tmp_path)
    assert descriptor is not None
    release(descriptor)
