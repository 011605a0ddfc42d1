"""CPython's own documentation as a corpus that is on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache


def pydoc_texts() -> list[str]:
    """CPython's own documentation, about 460,000 characters; it differs between versions of Python."""
    from pydoc_data.topics import topics

    return [topics[key] for key in sorted(topics)]


@lru_cache
def pydoc_sha256() -> str:
    """Hash of this Python's documentation."""
    return texts_sha256(pydoc_texts())


def texts_sha256(texts: Iterable[str]) -> str:
    """Hash of a sequence of texts; each is preceded by its length, so that no two sequences collide."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()
