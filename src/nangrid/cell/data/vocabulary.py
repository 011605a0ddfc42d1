"""Adds new tokens to a tokenizer, and keeps the base ids that they replace.

`spm` continues BPE training where the base tokenizer stopped: the most frequent pair of neighbouring tokens in the
encoded documents becomes a piece, with a merge of the lowest priority. All base merges run before a new one, so an
encoding changes only where a run of old ids becomes a new one. `add_tokens` adds frequent words that the tokenizer
splits.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders

from nangrid.cell.config import VocabConfig
from nangrid.records.errors import InputError

Ids = npt.NDArray[np.int64]

QUICK = 1000
"""Number of pieces that takes seconds to learn; the time grows with its square."""
BREAK = -1
"""Marks the border of two pre-tokens, across which nothing is merged."""


@dataclass(frozen=True)
class NewToken:
    """A token that the base tokenizer lacks, and the base ids that encode it there."""

    id: int
    text: str
    expansion: tuple[int, ...]


def vocab_size(tokenizer: Tokenizer) -> int:
    """Number of ids, added tokens included; also the next free id."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def extend(base: Tokenizer, vocab: VocabConfig, texts: Sequence[str]) -> tuple[Tokenizer, tuple[NewToken, ...]]:
    """A tokenizer with `vocab.size` more tokens, each of which `texts` produce; `base` is not changed."""
    if vocab.name == "none":
        return base, ()
    if vocab.name == "spm":
        return _extend_model(base, vocab.size, texts)
    return _add_words(base, vocab.size, texts)


class Pieces:
    """Strings of a BPE model by id, and which of them may be joined.

    A piece may be joined as SentencePiece's split_by_whitespace allows: one space, at the start; no control
    character; no byte, special or added token.
    """

    def __init__(self, spec: dict[str, Any], byte_level: bool, first_new: int, size: int) -> None:
        self.strings: dict[int, str] = {i: piece for piece, i in spec["model"]["vocab"].items()}
        self.known = set(self.strings.values()) | {token["content"] for token in spec["added_tokens"]}
        self.byte_level = byte_level
        self.closed = {token["id"] for token in spec["added_tokens"]}
        # One extra slot: BREAK (-1), used as an index, reads the last one, where nothing is allowed.
        self.starts, self.follows, self.lettered = np.zeros((3, first_new + size + 1), dtype=bool)

    def describe(self, token: int) -> None:
        """Set whether one id may start, follow or name a piece."""
        piece = self.strings.get(token, "")
        text = piece_text(piece, self.byte_level)
        body = text.removeprefix(" ")
        ordinary = token not in self.closed and not re.fullmatch(r"<0x[0-9A-F]{2}>", piece)
        self.starts[token] = ordinary and text != "" and all(_is_plain(character) for character in body)
        self.follows[token] = self.starts[token] and body == text
        self.lettered[token] = any(character.isalpha() for character in body)

    def add(self, token: int, left: int, right: int) -> None:
        """Add the piece that joins two others, under a new id."""
        self.strings[token] = self.strings[left] + self.strings[right]
        self.known.add(self.strings[token])
        self.describe(token)


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether pieces are written in GPT-2's alphabet of bytes."""
    return "ByteLevel" in f"{tokenizer.pre_tokenizer} {tokenizer.decoder}"


def piece_text(piece: str, byte_level: bool) -> str:
    """A piece as a person reads it."""
    if byte_level:
        return str(decoders.ByteLevel().decode([piece]))
    return piece.replace("▁", " ")


def most_pieces(ids: Ids, pieces: Pieces) -> int:
    """Upper bound of the number of new pieces: each needs at least two ids of a mergeable run."""
    ends = np.flatnonzero(~_joinable(ids, pieces)) + 1
    runs = {run.tobytes(): len(run) // 2 for run in np.split(ids, ends)}
    return sum(runs.values())


def learn_merges(ids: Ids, pieces: Pieces, first_new: int, size: int) -> list[tuple[int, int]]:
    """Up to `size` merges, the n-th making id `first_new + n`; each new id occurs in the merged `ids`."""
    merges: list[tuple[int, int]] = []
    while len(merges) < size:
        new = first_new + len(merges)
        for left, right in _frequent_pairs(ids, pieces):
            if pieces.strings[left] + pieces.strings[right] in pieces.known:
                continue
            merged = _merge(ids, left, right, new)
            # A part that is itself new must still occur, or its row would never be trained.
            if all(part < first_new or (merged == part).any() for part in (left, right)):
                break
        else:
            break
        ids = merged
        pieces.add(new, left, right)
        merges.append((left, right))
    return merges


def _is_plain(character: str) -> bool:
    return not (character.isspace() or character == "\ufffd" or unicodedata.category(character)[0] == "C")


def _joinable(ids: Ids, pieces: Pieces) -> npt.NDArray[np.bool_]:
    """Whether an id and the next may become one piece."""
    left, right = ids[:-1], ids[1:]
    allowed: npt.NDArray[np.bool_] = pieces.starts[left] & pieces.follows[right]
    return allowed & (pieces.lettered[left] | pieces.lettered[right])


def _frequent_pairs(ids: Ids, pieces: Pieces) -> Iterator[tuple[int, int]]:
    left, right = ids[:-1], ids[1:]
    allowed = _joinable(ids, pieces)
    width = len(pieces.starts)
    keys, counts = np.unique(left[allowed] * width + right[allowed], return_counts=True)
    for key in keys[np.argsort(-counts, kind="stable")]:
        yield int(key) // width, int(key) % width


def _merge(ids: Ids, left: int, right: int, new: int) -> Ids:
    hits = np.flatnonzero((ids[:-1] == left) & (ids[1:] == right))
    if left == right:  # aaa is (aa)a: take every second one of adjacent hits
        first = np.flatnonzero(np.diff(hits, prepend=-2) != 1)
        run = np.repeat(first, np.diff(first, append=len(hits)))
        hits = hits[(np.arange(len(hits)) - run) % 2 == 0]
    merged = ids.copy()
    merged[hits] = new
    return np.delete(merged, hits + 1)


def _extend_model(base: Tokenizer, size: int, texts: Sequence[str]) -> tuple[Tokenizer, tuple[NewToken, ...]]:
    spec = json.loads(base.to_str())
    _require_bpe(spec["model"])
    first_new = vocab_size(base)
    pieces = Pieces(spec, is_byte_level(base), first_new, size)
    ids = _encode(base, texts)
    for token in np.unique(ids[ids != BREAK]):
        pieces.describe(int(token))
    most = most_pieces(ids, pieces)
    if size > most > QUICK:  # learning them all, to say the exact number, would take minutes
        raise InputError(
            f"vocab.size={size} is too large: the documents yield at most {most} pieces. Type vocab.size=64."
        )
    merges = learn_merges(ids, pieces, first_new, size)
    _require_enough(len(merges), size)

    vocab = spec["model"]["vocab"]
    # An added token that is not in the model is numbered after it: name its id, or it would move.
    vocab.update({token["content"]: token["id"] for token in spec["added_tokens"]})
    expansions: dict[int, tuple[int, ...]] = {}
    for token, (left, right) in enumerate(merges, start=first_new):
        vocab[pieces.strings[token]] = token
        spec["model"]["merges"].append([pieces.strings[left], pieces.strings[right]])
        expansions[token] = expansions.get(left, (left,)) + expansions.get(right, (right,))
    tokens = tuple(
        NewToken(token, piece_text(pieces.strings[token], pieces.byte_level), expansion)
        for token, expansion in expansions.items()
    )
    return Tokenizer.from_str(json.dumps(spec)), tokens


def _require_bpe(model: dict[str, Any]) -> None:
    kind = model["type"]
    if kind != "BPE" or model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        kind = kind if kind != "BPE" else "BPE with marks inside words"
        raise InputError(f"vocab=spm needs a BPE tokenizer and this one is {kind}: type vocab=add_tokens.")


def _require_enough(available: int, size: int) -> None:
    if available == 0:
        raise InputError(f"vocab.size={size} is too large: the documents yield no new token. Type vocab=none.")
    if available < size:
        raise InputError(
            f"vocab.size={size} is too large: the documents yield {available} new tokens. Type vocab.size={available}."
        )


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> Ids:
    """Ids of all texts in a row, with BREAK after each pre-token."""
    rows = []
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        words = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
        ends = np.flatnonzero(np.diff(words)) + 1
        rows += [np.insert(np.array(encoding.ids, dtype=np.int64), ends, BREAK), np.array([BREAK])]
    return np.concatenate(rows) if rows else np.array([], dtype=np.int64)


def _add_words(base: Tokenizer, size: int, texts: Sequence[str]) -> tuple[Tokenizer, tuple[NewToken, ...]]:
    words = _split_words(base, texts)
    first_new = vocab_size(base)
    while True:
        _require_enough(len(words), size)
        extended = Tokenizer.from_str(base.to_str())
        extended.add_tokens(words[:size])
        encodings = extended.encode_batch(list(texts), add_special_tokens=False)
        produced = {token for encoding in encodings for token in encoding.ids}
        never = {word for token, word in enumerate(words[:size], start=first_new) if token not in produced}
        if not never:
            break
        words = [word for word in words if word not in never]
    expansions = base.encode_batch(words[:size], add_special_tokens=False)
    tokens = enumerate(zip(words, expansions, strict=False), start=first_new)
    return extended, tuple(NewToken(token, word, tuple(old.ids)) for token, (word, old) in tokens)


def _split_words(base: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Words that the base tokenizer splits in every position, the most frequent first."""
    counts = Counter(word for text in texts for word in re.findall(r"[^\W\d_]\w+", text))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    at_start = base.encode_batch(words, add_special_tokens=False)
    after_space = base.encode_batch([f" {word}" for word in words], add_special_tokens=False)
    known = base.get_vocab(with_added_tokens=True)
    return [
        word
        for word, one, other in zip(words, at_start, after_space, strict=True)
        if word not in known and len(one.ids) > 1 and len(other.ids) > 1
    ]
