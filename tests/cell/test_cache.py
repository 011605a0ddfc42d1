"""A cached entry is checked on each use, and built again if it is not what was written."""

import json
from pathlib import Path

import pytest

from nangrid.cell import cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANGRID_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "SMALL", 4)
    return made()


def made() -> Path:
    def build(folder: Path) -> None:
        (folder / "small").write_bytes(b"abc")
        (folder / "weights").write_bytes(b"0123456789")

    return cache.entry("test", {"recipe": 1}, build)


def is_rebuilt(folder: Path) -> bool:
    again = made()
    assert again == folder and (folder / "weights").read_bytes() == b"0123456789"
    return bool(list(folder.parent.glob(f"{folder.name}.damaged-*")))


def test_a_sound_entry_is_used_again(folder: Path) -> None:
    assert not is_rebuilt(folder)


@pytest.mark.parametrize("manifest", ["{}", "[]", "null", "[" * 9999, "{", '{"../../etc/passwd": {"bytes": 1}}'])
def test_a_manifest_that_lists_other_files_makes_no_entry(manifest: str, folder: Path) -> None:
    (folder / cache.MANIFEST).write_text(manifest)
    assert is_rebuilt(folder)


def test_large_files_are_hashed_once_they_were_written_to(folder: Path) -> None:
    (folder / "weights").write_bytes(b"0123456780")
    assert is_rebuilt(folder)


def test_a_file_that_was_added_later_is_noticed(folder: Path) -> None:
    (folder / "modeling.py").write_text("import os")
    assert is_rebuilt(folder)


def test_a_copied_entry_counts_by_its_content(folder: Path) -> None:
    manifest = json.loads((folder / cache.MANIFEST).read_text())
    del manifest["weights"]["ctime_ns"]  # as an earlier release wrote it
    (folder / cache.MANIFEST).write_text(json.dumps(manifest))
    assert not is_rebuilt(folder)
