import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from nangrid.cell.config import Config, DataConfig, ModelConfig, TargetsConfig, VocabConfig
from nangrid.cell.data.dataset import CellData, Collate, data_sha256, load_data
from nangrid.cell.model.checkpoint import Checkpoint, locate_checkpoint
from nangrid.records.errors import InputError

BOS, EOS = 2, 1
TINY = ModelConfig(name="tiny", source="tiny", layers=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("NANGRID_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def tiny(cache: Path) -> Checkpoint:
    return locate_checkpoint(TINY)


@pytest.fixture(scope="module")
def pydoc(tiny: Checkpoint) -> CellData:
    return load_data(_config(size=64, name="pydoc"), tiny)


def _config(size: int = 0, **data: Any) -> Config:
    vocab = VocabConfig(name="spm" if size else "none", size=size)
    return Config(model=TINY, vocab=vocab, targets=TargetsConfig("qv", ["q_proj"]), data=DataConfig(**data))


def _jsonl(path: Path, records: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_packed_samples_start_with_bos_and_are_full(pydoc: CellData) -> None:
    assert {len(sample) for sample in pydoc.train["input_ids"]} == {64}
    assert {sample[0] for sample in pydoc.train["input_ids"]} == {BOS}
    assert pydoc.train["labels"][:] == pydoc.train["input_ids"][:]
    assert len(pydoc.held_out) == 8
    assert pydoc.bos_id == BOS


def test_packed_samples_concatenate_the_documents(tiny: Checkpoint, tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.jsonl", [{"text": "a statement"}, {"text": "an expression"}] * 50)
    data = load_data(_config(name="jsonl", path=path, length=8, held_out=1), tiny)
    rows = [*data.train["input_ids"], *data.held_out["input_ids"]]
    joined = [token for row in rows for token in row[1:]]
    tokenizer = AutoTokenizer.from_pretrained(tiny.path)
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in ("a statement", "an expression")]
    expected = [*ids[0], EOS, *ids[1], EOS] * 50
    assert joined == expected[: len(joined)]
    assert len(expected) - len(joined) <= 8


def test_bos_false_adds_no_bos(tiny: Checkpoint) -> None:
    data = load_data(_config(name="pydoc", bos=False), tiny)
    assert not any(BOS in sample for sample in data.train["input_ids"])
    assert {len(sample) for sample in data.train["input_ids"]} == {64}


def test_new_tokens_are_counted_in_the_training_split(pydoc: CellData) -> None:
    flat = [token for sample in pydoc.train["input_ids"] for token in sample]
    new = {token.id: token.text for token in pydoc.new_tokens}
    assert len(new) == 64
    assert min(new) == pydoc.base_vocab_size == 1024
    assert pydoc.new_token_count == sum(token in new for token in flat) > 1000
    assert set(flat) <= pydoc.texts.keys()
    assert all(pydoc.texts[token] == new[token] for token in set(flat) & new.keys())


def test_glossary_has_only_new_tokens(tiny: Checkpoint) -> None:
    data = load_data(_config(size=16, name="glossary", bos=False), tiny)
    assert len(data.train) == 128
    assert {len(sample) for sample in data.train["input_ids"]} == {64}
    assert {token for sample in data.train["input_ids"] for token in sample} == set(range(1024, 1040))


def test_a_second_call_needs_neither_torch_nor_the_tokenizer(pydoc: CellData, tiny: Checkpoint) -> None:
    code = f"""
import sys
from nangrid.cell.config import Config, DataConfig, ModelConfig, TargetsConfig, VocabConfig
from nangrid.cell.model.checkpoint import Checkpoint
from nangrid.cell.data.dataset import load_data
from nangrid.cell.data.documents import data_sha256
model = ModelConfig(name='tiny', source='tiny', layers=1)
targets = TargetsConfig('qv', ['q_proj'])
config = Config(model=model, vocab=VocabConfig(name='spm', size=64), targets=targets, data=DataConfig(name='pydoc'))
assert data_sha256(config.data) and 'datasets' not in sys.modules
data = load_data(config, Checkpoint('/no/such/folder', {tiny.tokenizer_sha256!r}))
print(data.new_token_count, data.sha256, 'torch' in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [str(pydoc.new_token_count), pydoc.sha256, "False"]


def test_unpacked_documents_are_cut_and_padded_in_the_batch(tiny: Checkpoint, tmp_path: Path) -> None:
    texts = ["a", "a statement is an expression " * 20, "the expression"]
    path = _jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    data = load_data(_config(name="jsonl", path=path, length=16, packing=False, held_out=1), tiny)
    lengths = [len(sample) for sample in data.train["input_ids"]]
    assert lengths == [2, 16]
    batch = Collate(data.pad_id, "left", packing=False)(list(data.train))
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert batch["input_ids"][0, -2:].tolist() == data.train[0]["input_ids"]
    assert set(batch["labels"][0, :-2].tolist()) == {-100}
    right = Collate(data.pad_id, "right", packing=False)(list(data.train))
    assert right["input_ids"][0, :2].tolist() == data.train[0]["input_ids"]


def test_packed_samples_are_stacked_without_a_mask(pydoc: CellData) -> None:
    batch = Collate(pydoc.pad_id, "right", packing=True)([pydoc.train[0], pydoc.train[1]])
    assert batch.keys() == {"input_ids", "labels"}
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].tolist() == pydoc.train["input_ids"][:2]


@pytest.mark.parametrize("packing", [True, False])
def test_completion_labels_mask_the_prompt(packing: bool, tiny: Checkpoint, tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.jsonl", [{"prompt": "What is a loop?", "completion": " A statement."}] * 20)
    config = _config(name="jsonl", path=path, labels="completion", packing=packing, held_out=1)
    data = load_data(config, tiny)
    sample = data.train[0]
    learned = [token for token in sample["labels"] if token != -100]
    text = "".join(data.texts[token] for token in learned if token != EOS)
    assert sample["labels"][0] == -100
    assert text.replace(" A statement.", "") == ""
    assert text


def test_hash_depends_on_content_not_path(tmp_path: Path) -> None:
    paths = [_jsonl(tmp_path / name, [{"text": text}]) for name, text in (("a", "x"), ("b", "x"), ("c", "y"))]
    same, equal, other = (data_sha256(DataConfig(name="jsonl", path=path)) for path in paths)
    assert same == equal != other


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "line 2 is not JSON"),
        ("\xff", "line 2 is not JSON"),
        ("[1, 2]", "line 2 is a list"),
        ('{"txt": "a"}', r"line 2 lacks a key \(it has txt\)"),
        ('{"prompt": "a"}', "line 2 lacks a key"),
        ('{"text": 7}', "line 2: text is a int"),
        ('{"text": "\\ud800"}', "line 2: text holds half a surrogate pair"),
    ],
)
def test_a_broken_line_is_named(line: str, message: str, tiny: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(InputError, match=message):
        load_data(_config(name="jsonl", path=str(path)), tiny)


@pytest.mark.parametrize(
    ("records", "data", "message"),
    [
        ([], {}, "is empty"),
        ([{"text": "a statement"}], {}, "gives 0 samples .* need 10"),
        ([{"text": ""}], {"packing": False}, "gives 0 samples"),
        ([{"text": "a"}] * 9, {"packing": False}, "gives 9 samples .* need 10"),
        ([{"text": "a"}], {"labels": "completion"}, "type data.labels=all"),
    ],
)
def test_untrainable_data_is_rejected(
    records: list[dict[str, str]], data: dict[str, Any], message: str, tiny: Checkpoint, tmp_path: Path
) -> None:
    path = _jsonl(tmp_path / "a.jsonl", records)
    with pytest.raises(InputError, match=message):
        load_data(_config(name="jsonl", path=path, **data), tiny)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.jsonl cannot be read"):
        data_sha256(DataConfig(name="jsonl", path=str(tmp_path / "no.jsonl")))


def test_batch_larger_than_the_cached_data_is_rejected(tiny: Checkpoint, tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "a.jsonl", [{"text": "a"}] * 12)
    load_data(_config(name="jsonl", path=path, packing=False), tiny)
    with pytest.raises(InputError, match="plus one step of 8 need 16"):
        load_data(_config(name="jsonl", path=path, packing=False, batch=2, accumulation=4), tiny)
    with pytest.raises(InputError, match="plus one step of 8 need 16"):
        load_data(replace(_config(name="jsonl", path=path, packing=False, batch=2), processes=4), tiny)


def test_local_folder_is_accepted_as_a_hub_dataset(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "corpus"
    folder.mkdir()
    _jsonl(folder / "train.jsonl", [{"text": "a statement"}] * 12)
    data = load_data(_config(name="hub", path=str(folder), packing=False), tiny)
    assert len(data.train) == 4


def test_unreachable_dataset_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"data.path=nobody/nothing .* give a local folder"):
        data_sha256(DataConfig(name="hub", path="nobody/nothing"))


def test_tokenizer_without_bos_is_rejected(tiny: Checkpoint, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.path)
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("bos_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=r"no bos token: type data.bos=false"):
        load_data(_config(name="pydoc"), Checkpoint(str(tmp_path), "another"))
