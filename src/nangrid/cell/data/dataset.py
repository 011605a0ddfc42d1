"""Builds the tokenised samples of a cell: training data, held-out data, and the new tokens in them.

Tokenising takes seconds (a tokenizer of 262,144 tokens is loaded twice), so the result is cached.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nangrid.cell.cache import entry
from nangrid.cell.config import Config, DataConfig
from nangrid.cell.data.chat import ChatEncoder, find_template, template_sha256
from nangrid.cell.data.documents import Chat, Document, data_sha256, load_documents
from nangrid.cell.data.vocabulary import NewToken, extend, is_byte_level, piece_text, vocab_size
from nangrid.cell.model.checkpoint import Checkpoint
from nangrid.records.errors import InputError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = ["CellData", "Collate", "data_sha256", "load_data"]

RECIPE = 1
"""Increase this whenever the same source gives other samples."""
IGNORED = -100
"""Label that transformers' losses ignore."""
GLOSSARY_SAMPLES = 2 * 64
"""64 steps of 2 samples."""

Ids = npt.NDArray[np.int64]
Sample = tuple[Ids, Ids]


@dataclass(frozen=True)
class CellData:
    """Training and evaluation data of a cell: rows of `input_ids` and `labels`."""

    train: Dataset
    held_out: Dataset
    new_tokens: tuple[NewToken, ...]
    base_vocab_size: int
    """Number of ids of the base tokenizer; every id from there on is new."""
    new_token_count: int
    """Occurrences of new tokens in `train`."""
    texts: dict[int, str]
    """Text of every id that occurs."""
    pad_id: int
    bos_id: int | None
    sha256: str
    """Hash of the source."""


@dataclass(frozen=True)
class Collate:
    """Makes a batch: stacks packed samples, or pads samples and adds their attention mask."""

    pad_id: int
    padding_side: str
    packing: bool

    def __call__(self, samples: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Batch of tensors of shape (samples, longest sample)."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        def padded(rows: Iterable[list[int]], value: int) -> torch.Tensor:
            return pad_sequence(
                [torch.tensor(row) for row in rows],
                batch_first=True,
                padding_value=value,
                padding_side=self.padding_side,
            )

        batch = {
            "input_ids": padded((sample["input_ids"] for sample in samples), self.pad_id),
            "labels": padded((sample["labels"] for sample in samples), IGNORED),
        }
        if not self.packing:
            batch["attention_mask"] = padded(([1] * len(sample["input_ids"]) for sample in samples), 0)
        return batch


def load_data(config: Config, checkpoint: Checkpoint) -> CellData:
    """Data of the cell. A cached call neither loads the tokenizer nor tokenises."""
    from datasets import Dataset

    data = config.data
    source = data_sha256(data)
    template = template_sha256(data, checkpoint)
    made_from = {
        "recipe": RECIPE,
        "source": source,
        "tokenizer": checkpoint.tokenizer_sha256,
        "vocab": asdict(config.vocab),
        **{key: getattr(data, key) for key in ("name", "bos", "length", "packing", "labels", "held_out")},
        **({"template": template} if template else {}),
    }
    folder = entry("data", made_from, partial(_build, config, checkpoint))
    train, held_out = (Dataset.from_file(str(folder / f"{part}.arrow")) for part in ("train", "held_out"))
    _require_enough(len(train) + len(held_out), config)
    facts = json.loads((folder / "facts.json").read_text())
    tokens = tuple(NewToken(token["id"], token["text"], tuple(token["expansion"])) for token in facts.pop("new_tokens"))
    texts = {int(token): text for token, text in facts.pop("texts").items()}
    return CellData(train=train, held_out=held_out, new_tokens=tokens, texts=texts, sha256=source, **facts)


def _build(config: Config, checkpoint: Checkpoint, folder: Path) -> None:
    data = config.data
    documents = load_documents(data)
    tokenizer = _tokenizer(checkpoint)
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    if data.bos and bos is None:
        raise InputError(f"the tokenizer of {checkpoint.path} has no bos token: type data.bos=false.")
    base = _backend(tokenizer, checkpoint)
    texts = [text for document in documents for text in document.texts if text]
    extended, new_tokens = extend(base, config.vocab, texts)

    if data.name == "glossary":
        rows = _glossary([token.id for token in new_tokens], data)
    else:
        chats = any(isinstance(document, Chat) for document in documents)
        encoder = ChatEncoder.of(find_template(data, checkpoint), tokenizer) if chats else None
        rows = [_encode(extended, document, data, encoder) for document in documents]
        if data.packing and eos is not None:
            rows = _ended(rows, documents, eos)
    samples = _samples(rows, data, bos if data.bos else None)
    _require_enough(len(samples), config)
    parts = {"train": samples[: -data.held_out], "held_out": samples[-data.held_out :]}
    for name, part in parts.items():
        _save(part, folder / f"{name}.arrow")

    first_new = vocab_size(base)
    facts = {
        "new_tokens": [asdict(token) for token in new_tokens],
        "base_vocab_size": first_new,
        "new_token_count": sum(int((ids >= first_new).sum()) for ids, _ in parts["train"]),
        "texts": _texts(extended, samples),
        "pad_id": next(token for token in (pad, eos, 0) if token is not None),
        "bos_id": bos,
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def _tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"the tokenizer of {checkpoint.path} cannot be loaded ({error}): "
            "give a folder that save_pretrained wrote, model.id=/path/to/model."
        ) from error


def _backend(tokenizer: PreTrainedTokenizerBase, checkpoint: Checkpoint) -> Tokenizer:
    backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"the tokenizer of {checkpoint.path} is not from the tokenizers library: "
            "give a model with a tokenizer.json, model.id=/path/to/model."
        )
    backend.no_truncation()
    backend.no_padding()
    return backend


def _encode(tokenizer: Tokenizer, document: Document | Chat, data: DataConfig, encoder: ChatEncoder | None) -> Sample:
    """Ids and labels of a document, without bos."""
    if isinstance(document, Chat):
        assert encoder is not None
        if data.labels == "all":
            ids = encoder.encode(document, tokenizer)
            return ids, ids
        ids, mask = encoder.encode_with_assistant_mask(document, tokenizer)
        return ids, np.where(mask, ids, IGNORED)
    prompt = tokenizer.encode(document.prompt or "", add_special_tokens=False).ids
    text = tokenizer.encode(document.text, add_special_tokens=False).ids
    ids = np.array(prompt + text, dtype=np.int64)
    labels = ids.copy()
    if data.labels == "completion":
        labels[: len(prompt)] = IGNORED
    return ids, labels


def _ended(rows: list[Sample], documents: Sequence[Document | Chat], eos: int) -> list[Sample]:
    """Rows with eos after each text but the last; a chat ends as its template ends it."""
    ended = [
        row if isinstance(document, Chat) else (np.append(row[0], eos), np.append(row[1], eos))
        for row, document in zip(rows[:-1], documents, strict=False)
    ]
    return ended + rows[-1:]


def _glossary(new_ids: list[int], data: DataConfig) -> list[Sample]:
    """Documents that are permutations of the new ids, the same in every cell."""
    tokens = (GLOSSARY_SAMPLES + data.held_out) * data.length
    documents = -(-tokens // len(new_ids)) if data.packing else GLOSSARY_SAMPLES + data.held_out
    generator = np.random.default_rng(0)
    rows = [generator.permutation(np.array(new_ids, dtype=np.int64)) for _ in range(documents)]
    return [(row, row) for row in rows]


def _samples(rows: list[Sample], data: DataConfig, bos: int | None) -> list[Sample]:
    length = data.length - (bos is not None)
    if data.packing:
        rows = _packed(rows, length)
    cut = [(ids[:length], labels[:length]) for ids, labels in rows if len(ids) > 0]
    return [_after_bos(sample, bos, data.labels) for sample in cut]


def _packed(rows: list[Sample], length: int) -> list[Sample]:
    """Samples of one length, cut from the joined documents; the tail is dropped."""
    ids, labels = (np.concatenate([row[part] for row in rows]) for part in (0, 1))
    count = len(ids) // length
    return [(ids[i * length :][:length], labels[i * length :][:length]) for i in range(count)]


def _after_bos(sample: Sample, bos: int | None, labels: str) -> Sample:
    if bos is None:
        return sample
    return np.insert(sample[0], 0, bos), np.insert(sample[1], 0, bos if labels == "all" else IGNORED)


def _require_enough(samples: int, config: Config) -> None:
    data = config.data
    step = data.batch * data.accumulation * config.processes
    if samples < data.held_out + step:
        raise InputError(
            f"data={data.name} gives {samples} samples of data.length={data.length} tokens, and "
            f"data.held_out={data.held_out} plus one step of {step} need {data.held_out + step}: "
            "give more text, or a smaller data.length."
        )


def _texts(tokenizer: Tokenizer, samples: list[Sample]) -> dict[int, str]:
    byte_level = is_byte_level(tokenizer)
    tokens = np.unique(np.concatenate([ids for ids, _ in samples]))
    return {int(token): piece_text(tokenizer.id_to_token(int(token)) or "", byte_level) for token in tokens}


def _save(samples: list[Sample], path: Path) -> None:
    import pyarrow

    table = pyarrow.table({"input_ids": [ids for ids, _ in samples], "labels": [labels for _, labels in samples]})
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
