import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from nangrid.records.cell import CellRecord, write_record
from nangrid.records.errors import InputError, RecordError
from nangrid.records.grid import GridDirectory

MakeRecord = Callable[..., CellRecord]


def store(grid: GridDirectory, record: CellRecord) -> Path:
    directory = grid.cell(record.cell_id)
    directory.mkdir()
    write_record(directory, record)
    return directory


def test_grid_keeps_its_id(tmp_path: Path) -> None:
    grid = GridDirectory.open(tmp_path / "deep" / "smoke")
    assert re.fullmatch("smoke-[0-9a-f]{8}", grid.grid_id)
    assert GridDirectory.open(str(tmp_path / "deep" / "smoke")) == grid
    assert json.loads((grid.path / "grid.json").read_text()).keys() == {"schema", "grid_id", "created"}


def test_concurrent_openers_agree_on_the_grid_id(tmp_path: Path) -> None:
    barrier = Barrier(8)

    def open_together(_: int) -> str:
        barrier.wait()
        return GridDirectory.open(tmp_path / "grid").grid_id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(open_together, range(8)))) == 1
    assert sorted(path.name for path in (tmp_path / "grid").iterdir()) == ["cells", "grid.json"]


def test_unwritable_out_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"out=.*file/grid cannot be written \(Not a directory\)"):
        GridDirectory.open(tmp_path / "file" / "grid")
    with pytest.raises(InputError, match="cannot be written"):
        GridDirectory.open("/proc/nangrid")


def test_newer_grid_json_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "grid.json").write_text('{"schema": 7}')
    with pytest.raises(RecordError, match=r"grid\.json cannot be read \(its schema is 7, newer than"):
        GridDirectory.open(tmp_path)


def test_damaged_and_unfinished_cells_do_not_hide_the_others(tmp_path: Path, make_record: MakeRecord) -> None:
    grid = GridDirectory.open(tmp_path)
    good = [make_record(cell_id="a"), make_record({"loss": 0}, cell_id="d")]
    for record in reversed(good):
        store(grid, record)
    grid.cell("b").mkdir()
    (store(grid, make_record(cell_id="c")) / "result.json").write_text('{"schema": 1')
    store(grid, make_record(cell_id="e")).rename(grid.cell("f"))
    (grid.path / "cells" / "notes.txt").touch()

    records, errors = grid.records()

    assert records == good
    assert [re.findall("cells/(.)", str(error))[0] for error in errors] == ["c", "f"]
    assert "the record of another cell, e" in str(errors[1])


def test_reading_records_imports_neither_pandas_nor_torch() -> None:
    code = "import sys, nangrid.records.grid; assert not {'pandas', 'torch', 'pyarrow'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_damaged_grid_json_is_restored_from_the_cells(
    tmp_path: Path, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = GridDirectory.open(tmp_path)
    path = tmp_path / "grid.json"
    path.write_text(path.read_text()[:20])
    with pytest.raises(RecordError, match=r"grid\.json cannot be read"):
        GridDirectory.open(tmp_path)  # no cell knows its id
    store(grid, make_record(grid_id=grid.grid_id))
    assert GridDirectory.open(tmp_path) == grid
    assert "grid.json is damaged: renamed to grid.json.damaged-0 and restored" in capsys.readouterr().err
    assert len((tmp_path / "grid.json.damaged-0").read_text()) == 20
    assert GridDirectory.open(tmp_path) == grid
