import os
import stat
from pathlib import Path

import pytest

from nangrid.records.atomic import create_bytes, write_bytes


def test_failed_write_leaves_only_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_bytes(path, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_replace_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(f"{target} is not to be replaced")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="taken"):
        write_bytes(tmp_path / "taken", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_a_files_place_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").write_bytes(b"old")
    write_bytes(tmp_path / "taken", b"new")
    assert (tmp_path / "taken").read_bytes() == b"new"
    assert [path.read_bytes() for path in tmp_path.glob("taken.damaged-*/inside")] == [b"old"]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_bytes(tmp_path / "result.json", b"{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "result.json").stat().st_mode) == 0o644


def test_create_succeeds_once(tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    assert create_bytes(path, b"first")
    assert not create_bytes(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
