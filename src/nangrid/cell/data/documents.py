"""Reads the documents that a cell is trained on, and hashes their source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nangrid.cell.config import DataConfig
from nangrid.cell.pydoc import pydoc_sha256, pydoc_texts, texts_sha256
from nangrid.records.errors import InputError

MESSAGE = '{"role": ..., "content": ...}'
KEYS = f'{{"text": ...}}, {{"prompt": ..., "completion": ...}} or {{"messages": [{MESSAGE}, ...]}}'


@dataclass(frozen=True)
class Document:
    """A text; or a completion with the prompt before it."""

    text: str
    prompt: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Prompt, if any, and text."""
        return (self.text,) if self.prompt is None else (self.prompt, self.text)


@dataclass(frozen=True)
class Chat:
    """Messages, each with a role and a content, and their place in the source."""

    messages: tuple[dict[str, Any], ...]
    where: str

    @property
    def texts(self) -> tuple[str, ...]:
        """Contents of the messages, in order, without what a template adds."""
        return tuple(message["content"] for message in self.messages)


def load_documents(data: DataConfig) -> list[Document | Chat]:
    """The documents of a source, in order; the glossary has pydoc's, from which it learns its vocabulary."""
    if data.name == "jsonl":
        documents = [_document(record, where) for record, where in _jsonl(str(data.path))]
    elif data.name == "hub":
        rows = enumerate(_hub(str(data.path), data.split))
        documents = [_document(row, f"{data.path}, row {number}") for number, row in rows]
    else:
        documents = [Document(text) for text in pydoc_texts()]
    if not documents:
        raise InputError(f"data.path={data.path} is empty: give at least one record, {KEYS}.")
    if data.labels == "completion" and any(isinstance(d, Document) and d.prompt is None for d in documents):
        raise InputError(
            f"data.labels=completion needs prompts, and data={data.name} has records without: "
            'give {"prompt": ..., "completion": ...} or {"messages": [...]} records with data=jsonl, '
            "or type data.labels=all."
        )
    return documents


def has_chats(data: DataConfig) -> bool:
    """Whether a chat template is needed. Malformed records are refused by `load_documents`."""
    if data.name == "jsonl":
        return _has_chats(str(data.path), data_sha256(data))
    return data.name == "hub" and _kind(dict.fromkeys(_hub(str(data.path), data.split).column_names)) == "messages"


@lru_cache
def _has_chats(path: str, sha256: str) -> bool:
    # text alone, by far the most of what is read here, has no such key and is not parsed
    return b'"messages"' in _read(path) and any(_kind(record) == "messages" for record, _ in _jsonl(path))


def data_sha256(data: DataConfig) -> str:
    """Hash of the source as it is, before tokenisation: of contents, never of a path."""
    if data.name == "jsonl":
        return hashlib.sha256(_read(str(data.path))).hexdigest()
    if data.name == "hub":
        return texts_sha256(json.dumps(row, default=str) for row in _hub(str(data.path), data.split))
    return pydoc_sha256()


def _read(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(
            f"data.path={path} cannot be read ({error.strerror}): give data.path=/path/to/file.jsonl."
        ) from error


def _jsonl(path: str) -> Iterator[tuple[object, str]]:
    """The records, each with its place."""
    for number, line in enumerate(_read(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not JSON ({error}): write one record per line, {KEYS}.") from error
        yield record, where


def _kind(record: object) -> str | None:
    """The key that says what a record is: a record with a text and other keys is a text."""
    if not isinstance(record, Mapping):
        return None
    if "text" in record:
        return "text"
    if "prompt" in record and "completion" in record:
        return "completion"
    return "messages" if "messages" in record else None


def _document(record: object, where: str) -> Document | Chat:
    if not isinstance(record, Mapping):
        raise InputError(f"{where} is a {type(record).__name__}, not a record: write {KEYS}.")
    kind = _kind(record)
    if kind == "text":
        return Document(_string(record, "text", where))
    if kind == "completion":
        return Document(_string(record, "completion", where), _string(record, "prompt", where))
    if kind == "messages":
        return Chat(_messages(record, where), where)
    keys = ", ".join(map(str, record)) or "none"
    raise InputError(f"{where} lacks a key (it has {keys}): write {KEYS}.")


def _messages(record: Mapping[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        given = "an empty list" if messages == [] else f"a {type(messages).__name__}"
        raise InputError(f"{where}: messages is {given}, not a list of messages: write [{MESSAGE}, ...].")
    if record.get("tools"):
        raise InputError(f"{where} has tools, which no template is given here: leave them out.")
    return tuple(_message(message, f"{where}, message {number}") for number, message in enumerate(messages, start=1))


def _message(message: object, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"{where} is a {type(message).__name__}, not a message: write {MESSAGE}.")
    for key in ("role", "content"):
        if key not in message:
            raise InputError(f"{where} has no {key}: write {MESSAGE}.")
        _string(message, key, where, MESSAGE)
    # datasets fills in None for keys that other messages have, and templates ask whether a key is there
    return {key: value for key, value in message.items() if value is not None}


def _string(record: Mapping[str, Any], key: str, where: str, wanted: str = KEYS) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise InputError(f"{where}: {key} is a {type(value).__name__}, not a string: write {wanted}.")
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
