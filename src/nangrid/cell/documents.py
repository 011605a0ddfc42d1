"""Which texts is a cell trained on, and what is their hash?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nangrid.cell.config import DataConfig
from nangrid.records.errors import InputError

KEYS = '{"text": ...} or {"prompt": ..., "completion": ...}'


@dataclass(frozen=True)
class Document:
    """A text; or a completion with the prompt before it."""

    text: str
    prompt: str | None = None


def load_documents(data: DataConfig) -> list[Document]:
    """The documents of a source, in order; for the glossary pydoc's, on which its vocabulary is learned."""
    if data.name == "jsonl":
        documents = list(_jsonl(str(data.path)))
    elif data.name == "hub":
        rows = enumerate(_hub(str(data.path), data.split))
        documents = [_document(row, f"{data.path}, row {number}") for number, row in rows]
    else:
        documents = [Document(text) for text in pydoc_texts()]
    if not documents:
        raise InputError(f"data.path={data.path} is empty: give at least one record, {KEYS}.")
    if data.labels == "completion" and any(document.prompt is None for document in documents):
        raise InputError(
            f"data.labels=completion needs prompts, and data={data.name} has records without: "
            'give {"prompt": ..., "completion": ...} records with data=jsonl, or type data.labels=all.'
        )
    return documents


def data_sha256(data: DataConfig) -> str:
    """Hash of the source as it is, before tokenisation: of contents, never of a path."""
    if data.name == "jsonl":
        return hashlib.sha256(_read(str(data.path))).hexdigest()
    if data.name == "hub":
        return _sha256(json.dumps(row, default=str) for row in _hub(str(data.path), data.split))
    return pydoc_sha256()


def pydoc_texts() -> list[str]:
    """CPython's own documentation, about 460,000 characters; it differs between versions of Python."""
    from pydoc_data.topics import topics

    return [topics[key] for key in sorted(topics)]


@lru_cache
def pydoc_sha256() -> str:
    """Hash of this Python's documentation."""
    return _sha256(pydoc_texts())


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()


def _read(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(
            f"data.path={path} cannot be read ({error.strerror}): give data.path=/path/to/file.jsonl."
        ) from error


def _jsonl(path: str) -> Iterator[Document]:
    for number, line in enumerate(_read(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON ({error}): write one record a line, {KEYS}.") from error
        yield _document(record, where)


def _document(record: object, where: str) -> Document:
    if not isinstance(record, Mapping):
        raise InputError(f"{where} is a {type(record).__name__}, not a record: write {KEYS}.")
    if "text" in record:
        return Document(_string(record, "text", where))
    if "prompt" in record and "completion" in record:
        return Document(_string(record, "completion", where), _string(record, "prompt", where))
    keys = ", ".join(map(str, record)) or "none"
    raise InputError(f"{where} lacks a key (it has {keys}): write {KEYS}.")


def _string(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} is a {type(value).__name__}, not a string: write {KEYS}.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"{where}: {key} holds half a surrogate pair: write whole characters.")
    return value


@lru_cache
def _hub(path: str, split: str) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(path, split=split)
    except Exception as error:  # datasets raises its own, the hub's, fsspec's and pyarrow's errors here
        raise InputError(
            f"data.path={path} with data.split={split} cannot be loaded ({type(error).__name__}): "
            "give a local folder, data.path=/path/to/folder, or a dataset's id and a split that it has."
        ) from error
