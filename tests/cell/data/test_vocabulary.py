import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nangrid.cell.config import ModelConfig, VocabConfig
from nangrid.cell.data.vocabulary import NewToken, extend, vocab_size
from nangrid.cell.model.checkpoint import locate_checkpoint
from nangrid.cell.pydoc import pydoc_texts
from nangrid.records.errors import InputError

TEXTS = pydoc_texts()[:20]
SPECIALS = ["<|begin|>", "<|end|>"]
Extended = tuple[Tokenizer, Tokenizer, tuple[NewToken, ...]]


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    """Gemma's kind: one pre-token a document, bytes for unknown characters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANGRID_CACHE", str(tmp_path_factory.mktemp("cache")))
        path = locate_checkpoint(ModelConfig(name="tiny", source="tiny", layers=1)).path
    yield Tokenizer.from_file(str(Path(path) / "tokenizer.json"))


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    """Llama 3's kind: bytes, pre-tokens, whole ones looked up first, special tokens after the model's."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    tokenizer.add_special_tokens(SPECIALS)
    return tokenizer


@pytest.fixture(scope="module", params=["sentencepiece", "byte_level"])
def extended(request: pytest.FixtureRequest) -> Extended:
    base = request.getfixturevalue(request.param)
    return base, *extend(base, VocabConfig(name="spm", size=64), TEXTS)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def _expanded(ids: list[int], new_tokens: tuple[NewToken, ...]) -> list[int]:
    expansions = {token.id: token.expansion for token in new_tokens}
    return [old for token in ids for old in expansions.get(token, (token,))]


def _produced(tokenizer: Tokenizer, texts: list[str]) -> Counter[int]:
    return Counter(token for text in texts for token in _ids(tokenizer, text))


words = st.sampled_from([*" ".join(TEXTS[:3]).split(" ")[:300], *SPECIALS, "<bos>", "\n", "  "])
texts = st.one_of(st.text(), st.lists(words).map(" ".join), st.lists(words).map("".join))


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_a_new_id_expands_to_exactly_the_old_encoding(extended: Extended, text: str) -> None:
    base, tokenizer, new_tokens = extended
    ids = _ids(tokenizer, text)
    assert _expanded(ids, new_tokens) == _ids(base, text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == base.decode(_ids(base, text), skip_special_tokens=False)


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(st.text("aab ▁.\n", max_size=40), min_size=1, max_size=4), size=st.integers(1, 5))
def test_every_new_piece_occurs_in_the_encoding(sentencepiece: Tokenizer, documents: list[str], size: int) -> None:
    try:
        tokenizer, new_tokens = extend(sentencepiece, VocabConfig(name="spm", size=size), documents)
    except InputError as error:
        assert "vocab" in str(error)
        return
    produced = _produced(tokenizer, documents)
    assert len(new_tokens) == size
    assert all(produced[token.id] > 0 for token in new_tokens)


def test_a_run_of_one_token_is_joined_from_the_left_as_the_tokenizer_does(sentencepiece: Tokenizer) -> None:
    tokenizer, new_tokens = extend(sentencepiece, VocabConfig(name="spm", size=2), ["qqqqq"])
    assert [token.text for token in new_tokens] == ["qq", "qqq"]
    assert tokenizer.encode("qqqqq", add_special_tokens=False).tokens == ["qq", "qqq"]


def test_old_ids_stay_and_new_ones_follow(extended: Extended) -> None:
    base, tokenizer, new_tokens = extended
    old = base.get_vocab()
    assert tokenizer.get_vocab().items() >= old.items()
    assert [token.id for token in new_tokens] == list(range(len(old), len(old) + 64))
    assert vocab_size(tokenizer) == len(old) + 64
    assert all(base.encode(token.text, add_special_tokens=False).ids == list(token.expansion) for token in new_tokens)


def test_pieces_are_frequent_words_of_the_documents(extended: Extended) -> None:
    _, tokenizer, new_tokens = extended
    produced = _produced(tokenizer, TEXTS)
    assert all(produced[token.id] > 0 for token in new_tokens)
    assert sum(produced[token.id] for token in new_tokens) > 500
    assert all(any(map(str.isalpha, token.text)) for token in new_tokens)
    assert not any(character.isspace() for token in new_tokens for character in token.text[1:])


def test_the_same_documents_give_the_same_pieces(extended: Extended) -> None:
    base, _, new_tokens = extended
    assert extend(base, VocabConfig(name="spm", size=64), TEXTS)[1] == new_tokens


def test_words_are_added_where_the_base_splits_them(sentencepiece: Tokenizer) -> None:
    before = sentencepiece.to_str()
    tokenizer, new_tokens = extend(sentencepiece, VocabConfig(name="add_tokens", size=16), TEXTS)
    produced = _produced(tokenizer, TEXTS)
    assert all(len(token.expansion) > 1 and produced[token.id] > 0 for token in new_tokens)
    assert [tokenizer.token_to_id(token.text) for token in new_tokens] == [token.id for token in new_tokens]
    assert tokenizer.decode(_ids(tokenizer, TEXTS[0])) == TEXTS[0]
    assert sentencepiece.to_str() == before


@pytest.mark.parametrize("name", ["spm", "add_tokens"])
def test_too_large_a_size_says_how_many_tokens_there_are(name: str, sentencepiece: Tokenizer) -> None:
    documents = ["metaclass coroutine metaclass"]
    with pytest.raises(InputError, match=r"Type vocab\.size=") as error:
        extend(sentencepiece, VocabConfig(name=name, size=1000), documents)
    size = int(str(error.value).rstrip(".").rpartition("=")[2])
    assert len(extend(sentencepiece, VocabConfig(name=name, size=size), documents)[1]) == size


def test_documents_without_any_new_token_are_rejected(sentencepiece: Tokenizer) -> None:
    with pytest.raises(InputError, match="Type vocab=none"):
        extend(sentencepiece, VocabConfig(name="spm", size=1), ["1 2 3"])


def test_spm_needs_a_bpe_tokenizer() -> None:
    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(InputError, match="WordPiece: type vocab=add_tokens"):
        extend(wordpiece, VocabConfig(name="spm", size=1), ["a"])


def test_vocab_none_leaves_the_tokenizer_unchanged(sentencepiece: Tokenizer) -> None:
    tokenizer, new_tokens = extend(sentencepiece, VocabConfig(name="none", size=0), TEXTS)
    assert json.loads(tokenizer.to_str()) == json.loads(sentencepiece.to_str())
    assert new_tokens == ()


def test_size_far_beyond_the_documents_fails_quickly(sentencepiece: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"vocab.size=100000 is too large: the documents yield at most \d+"):
        extend(sentencepiece, VocabConfig(name="spm", size=100_000), pydoc_texts())
