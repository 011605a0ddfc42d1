"""Caches converted models and tokenised data on disk, and checks them on each use.

An entry is a folder that is made once, under a lock: built under another name, synced to disk, then renamed. A kill in
the middle therefore leaves no entry. A manifest inside lists every file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_dir

from nangrid.records.atomic import set_damaged_aside, sync
from nangrid.records.errors import InputError
from nangrid.records.safety.files import parse_json, read_bounded
from nangrid.records.safety.text import say

MANIFEST = "manifest.json"
SMALL = 64 * 2**20
"""Files up to this many bytes are hashed on each use; larger ones (weights) once the kernel says that they changed."""


def cache_dir() -> Path:
    """$NANGRID_CACHE, or the user's cache folder."""
    return Path(os.environ.get("NANGRID_CACHE") or user_cache_dir("nangrid"))


def entry(kind: str, made_from: Mapping[str, object], build: Callable[[Path], None]) -> Path:
    """Folder of the entry that `build` makes, at most once for the same `made_from`.

    `build` fills the empty folder it is given. A damaged entry is renamed and rebuilt.
    """
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:20]
    folder = cache_dir() / f"{kind}-{key}"
    if _is_sound(folder):
        return folder
    with _lock(folder):
        if not _is_sound(folder):
            _set_aside(folder)
            _make(folder, build)
    return folder


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, computed once per process as long as the kernel does not say that the file changed."""
    facts = path.stat()
    return _sha256(path, (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, state: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lock(folder: Path) -> AbstractContextManager[object]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{folder}.lock").acquire()
    except OSError as error:
        raise InputError(
            f"the cache {folder.parent} cannot be written ({error.strerror}): "
            "set NANGRID_CACHE=/path/to/cache to a writable folder."
        ) from error


def _make(folder: Path, build: Callable[[Path], None]) -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        _seal(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync(folder.parent)


def _seal(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(folder)): _listed(path) for path in paths}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in [*paths, folder / MANIFEST, *(path.parent for path in paths), folder]:
        sync(path)


def _listed(path: Path) -> dict[str, object]:
    facts = path.stat()
    return {"bytes": facts.st_size, "sha256": file_sha256(path), "ctime_ns": facts.st_ctime_ns}


def _is_sound(folder: Path) -> bool:
    try:
        manifest = parse_json(read_bounded(folder / MANIFEST))
        present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        # an empty manifest lists nothing, and a file that it does not list was added later
        if not manifest or manifest.keys() != present - {MANIFEST}:
            return False
        return all(_is_as_listed(folder / name, listed) for name, listed in manifest.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_as_listed(path: Path, listed: Mapping[str, object]) -> bool:
    facts = path.stat()
    if facts.st_size != listed["bytes"]:
        return False
    unchanged = facts.st_size > SMALL and facts.st_ctime_ns == listed.get("ctime_ns")
    return unchanged or file_sha256(path) == listed["sha256"]


def _set_aside(folder: Path) -> None:
    if not folder.exists():
        return
    aside = set_damaged_aside(folder)
    say(f"{folder} is damaged: renamed to {aside.name}, and built again.", error=True)
