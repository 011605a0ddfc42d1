"""Chats are rendered by a template; bos, masks and new tokens are as for any other record."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nangrid.cell.config import Config, DataConfig, ModelConfig, TargetsConfig, VocabConfig
from nangrid.cell.data.chat import template_sha256
from nangrid.cell.data.dataset import CellData, load_data
from nangrid.cell.model.checkpoint import Checkpoint, locate_checkpoint
from nangrid.records.errors import InputError

BOS, EOS = 2, 1
TINY = ModelConfig(name="tiny", source="tiny", layers=1)
TURN = "{{ message.role }}:\n{{ message.content }}{{ eos_token }}\n"
PROMPT = "{% if add_generation_prompt %}assistant:\n{% endif %}"
TEMPLATE = "{{ bos_token }}{% for message in messages %}" + TURN + "{% endfor %}" + PROMPT
MARKED = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}:\n{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content }}{{ eos_token }}{% endif %}\n{% endfor %}"
)
UNSTABLE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{% if loop.last %}.{% endif %}\n{% endfor %}"
)
STRICT = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    + TURN
    + "{% endfor %}"
)
CHAT = [
    {"role": "user", "content": "What is a loop?"},
    {"role": "assistant", "content": "A statement that repeats."},
    {"role": "user", "content": "And a class?"},
    {"role": "assistant", "content": "An object."},
]
SAID = "A statement that repeats.<eos>An object.<eos>"
RENDERED = (
    "user:\nWhat is a loop?<eos>\nassistant:\nA statement that repeats.<eos>\n"
    "user:\nAnd a class?<eos>\nassistant:\nAn object.<eos>\n"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    """A tokenizer without a chat template."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANGRID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield locate_checkpoint(TINY)


@pytest.fixture
def chatty(plain: Checkpoint, tmp_path: Path) -> Checkpoint:
    """The same with one."""
    folder = shutil.copytree(plain.path, tmp_path / "chatty")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Checkpoint(str(folder), plain.tokenizer_sha256)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """A jsonl file of records."""

    def of(*records: object, name: str = "chats.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return of


def _config(path: str, vocab: VocabConfig | None = None, **data: Any) -> Config:
    vocab = vocab or VocabConfig(name="none", size=0)
    fields = {"name": "jsonl", "length": 128, "packing": False, "held_out": 1, "batch": 1}
    targets = TargetsConfig("qv", ["q_proj"])
    return Config(model=TINY, vocab=vocab, targets=targets, data=DataConfig(path=path, **fields | data))


def _chats(count: int) -> list[dict[str, Any]]:
    return [{"messages": CHAT}] * count


def _read(checkpoint: Checkpoint, ids: list[int]) -> str:
    text = AutoTokenizer.from_pretrained(checkpoint.path).decode(ids)
    assert isinstance(text, str)
    return text


def _learned(data: CellData) -> list[int]:
    return [token for labels in data.train["labels"] for token in labels if token != -100]


@pytest.mark.parametrize("bos", [True, False])
def test_chat_is_the_rendered_template_with_at_most_one_bos(
    bos: bool, chatty: Checkpoint, write: Callable[..., str]
) -> None:
    data = load_data(_config(write(*_chats(3)), bos=bos), chatty)
    ids = data.train[0]["input_ids"]
    assert _read(chatty, ids) == ("<bos>" if bos else "") + RENDERED
    assert ids.count(BOS) == int(bos)
    assert data.train[0]["labels"] == ids


@pytest.mark.parametrize("bos", [True, False])
def test_packed_chats_end_as_the_template_ends_them(bos: bool, chatty: Checkpoint, write: Callable[..., str]) -> None:
    data = load_data(_config(write(*_chats(20)), bos=bos, packing=True, length=16), chatty)
    rows = [*data.train["input_ids"], *data.held_out["input_ids"]]
    assert {len(row) for row in rows} == {16}
    assert {row.count(BOS) for row in rows} == {int(bos)}
    joined = _read(chatty, [token for row in rows for token in row[int(bos) :]])
    assert (RENDERED * 20).startswith(joined)
    assert len(RENDERED * 20) - len(joined) < 100


@pytest.mark.parametrize("template", [TEMPLATE, MARKED])
@pytest.mark.parametrize("bos", [True, False])
def test_completion_labels_cover_the_assistant_turn_to_its_end(
    template: str, bos: bool, plain: Checkpoint, write: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "mine.jinja").write_text(template)
    config = _config(write(*_chats(3)), labels="completion", template=str(tmp_path / "mine.jinja"), bos=bos)
    data = load_data(config, plain)
    sample = data.train[0]
    assert _read(plain, [token for token in sample["labels"] if token != -100]) == SAID
    assert all(label in (-100, token) for label, token in zip(sample["labels"], sample["input_ids"], strict=True))
    assert (sample["input_ids"][0] == BOS) == bos


@pytest.mark.parametrize("bos", [True, False])
def test_packing_keeps_the_masks(bos: bool, chatty: Checkpoint, write: Callable[..., str]) -> None:
    data = load_data(_config(write(*_chats(30)), labels="completion", packing=True, length=16, bos=bos), chatty)
    said = _read(chatty, _learned(data))
    assert said.startswith(SAID * 20)
    assert (SAID * 30).startswith(said)


def test_truncated_answer_has_no_labels_and_no_error(chatty: Checkpoint, write: Callable[..., str]) -> None:
    data = load_data(_config(write(*_chats(3)), labels="completion", length=4), chatty)
    assert {len(row) for row in data.train["input_ids"]} == {4}
    assert _learned(data) == []


def test_token_across_a_turn_border_is_a_label(plain: Checkpoint, write: Callable[..., str], tmp_path: Path) -> None:
    template = _file(tmp_path / "spaced.jinja", TEMPLATE.replace(":\n", ": "))
    data = load_data(_config(write(*_chats(3)), labels="completion", template=template), plain)
    assert data.texts[_learned(data)[0]] == " A", "the space is the template's"


def _file(path: Path, template: str) -> str:
    path.write_text(template)
    return str(path)


def test_texts_end_with_eos_and_chats_with_the_template(chatty: Checkpoint, write: Callable[..., str]) -> None:
    records = [{"text": "a statement"}, {"messages": CHAT}, {"prompt": "Q:", "completion": " A."}] * 20
    data = load_data(_config(write(*records), packing=True, bos=False, length=16), chatty)
    joined = _read(chatty, [token for row in data.train["input_ids"] for token in row])
    assert (f"a statement<eos>{RENDERED}Q: A.<eos>" * 20).startswith(joined)


def test_record_with_text_and_messages_is_a_text(plain: Checkpoint, write: Callable[..., str]) -> None:
    data = load_data(_config(write(*[{"text": "a statement", "messages": CHAT}] * 3)), plain)
    assert _read(plain, data.train[0]["input_ids"]) == "<bos>a statement"


@pytest.mark.parametrize("vocab", ["spm", "add_tokens"])
def test_new_tokens_are_learned_from_message_contents(
    vocab: str, chatty: Checkpoint, write: Callable[..., str]
) -> None:
    chat = [{"role": "user", "content": "zyxomorphic"}, {"role": "assistant", "content": "a zyxomorphic class"}]
    config = _config(write(*[{"messages": chat}] * 20), VocabConfig(name=vocab, size=1), packing=True, length=16)
    data = load_data(config, chatty)
    assert data.new_tokens[0].text.strip() in "zyxomorphic"
    assert data.new_token_count > 0


def test_template_content_changes_the_hash(
    plain: Checkpoint, chatty: Checkpoint, write: Callable[..., str], tmp_path: Path
) -> None:
    path = write(*_chats(3))
    files = [_file(tmp_path / name, text) for name, text in (("a", TEMPLATE), ("b", TEMPLATE), ("c", MARKED))]
    first, same, other = (template_sha256(_config(path, template=file).data, plain) for file in files)
    assert first == same != other
    assert template_sha256(_config(path).data, chatty) == first
    settings = Path(chatty.path) / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": "<mask>"}))
    assert template_sha256(_config(path).data, chatty) != first


def test_texts_have_no_template_hash(chatty: Checkpoint, write: Callable[..., str]) -> None:
    path = write({"text": 'say "messages"'}, {"text": "messages"}, {"prompt": "messages", "completion": "a"})
    assert template_sha256(_config(path).data, chatty) is None


def test_changed_template_misses_the_cache(chatty: Checkpoint, write: Callable[..., str]) -> None:
    config = _config(write(*_chats(3)))
    before = load_data(config, chatty).train[0]["input_ids"]
    _file(Path(chatty.path) / "chat_template.jinja", TEMPLATE.replace("role }}:", "role }}>"))
    assert load_data(config, chatty).train[0]["input_ids"] != before


def test_default_of_several_templates_is_used(chatty: Checkpoint, write: Callable[..., str]) -> None:
    (Path(chatty.path) / "chat_template.jinja").unlink()
    settings = Path(chatty.path) / "tokenizer_config.json"
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": several}))
    data = load_data(_config(write(*_chats(3)), bos=False), chatty)
    assert _read(chatty, data.train[0]["input_ids"]) == RENDERED


def test_date_in_a_template_is_fixed(plain: Checkpoint, write: Callable[..., str], tmp_path: Path) -> None:
    template = _file(tmp_path / "dated.jinja", "\n{{ strftime_now('%d %B %Y') }}\n{{ messages[0].content }}")
    data = load_data(_config(write(*_chats(3)), template=template, bos=False), plain)
    assert _read(plain, data.train[0]["input_ids"]) == "\n26 Jul 2024\nWhat is a loop?"


def test_chats_from_a_dataset_folder(chatty: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "corpus").mkdir()
    # the key of the one message is None in the others
    lines = [{"messages": [{**CHAT[0], "name": "Ada"}, *CHAT[1:]]}] * 3
    (tmp_path / "corpus" / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    named = TEMPLATE.replace("{{ message.role }}", "{{ message.role }}{% if 'name' in message %} Ada{% endif %}")
    config = _config(str(tmp_path / "corpus"), name="hub", bos=False, template=_file(tmp_path / "t", named))
    assert _read(chatty, load_data(config, chatty).train[0]["input_ids"]) == RENDERED.replace("user", "user Ada", 1)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": []}, "line 2: messages is an empty list"),
        ({"messages": "hello"}, "line 2: messages is a str"),
        ({"messages": ["hello"]}, "line 2, message 1 is a str, not a message"),
        ({"messages": [CHAT[0], {"content": "a"}]}, 'line 2, message 2 has no role: write {"role"'),
        ({"messages": [{"role": "user"}]}, "line 2, message 1 has no content"),
        ({"messages": [{"role": "user", "content": None}]}, "line 2, message 1: content is a NoneType"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "line 2, message 1: content is a list"),
        ({"messages": [{"role": 7, "content": "a"}]}, "line 2, message 1: role is a int"),
        ({"messages": CHAT, "tools": [{"name": "f"}]}, "line 2 has tools"),
        ({"conversations": CHAT}, r"line 2 lacks a key \(it has conversations\).*messages"),
    ],
)
def test_a_broken_chat_is_named(record: object, message: str, chatty: Checkpoint, write: Callable[..., str]) -> None:
    with pytest.raises(InputError, match=message):
        load_data(_config(write({"messages": CHAT}, record)), chatty)


@pytest.mark.parametrize(
    ("template", "data", "message"),
    [
        (STRICT, {}, r"line 2: data.template=.*strict refuses this chat \(no system here\): correct the messages, or"),
        ("{{ messages[9].content + 1 }}", {}, "line 1: data.template=.* refuses this chat"),
        (
            UNSTABLE,
            {"labels": "completion"},
            r"line 1, message 2: .*{% generation %}.*data.template=.*or type data.labels=all",
        ),
        (TEMPLATE, {"labels": "completion"}, "line 2 has no assistant message.*type data.labels=all"),
        ("{% for %}", {}, r"strict is not a valid Jinja template \(line 1: .*\): name another with data.template="),
    ],
)
def test_unsuitable_template_is_rejected(
    template: str, data: dict[str, Any], message: str, plain: Checkpoint, write: Callable[..., str], tmp_path: Path
) -> None:
    path = write({"messages": CHAT}, {"messages": [{"role": "system", "content": "Be brief."}]})
    config = _config(path, template=_file(tmp_path / "strict", template), **data)
    with pytest.raises(InputError, match=message):
        load_data(config, plain)


def test_chats_without_any_template_are_rejected(plain: Checkpoint, write: Callable[..., str]) -> None:
    with pytest.raises(InputError, match=r"has no chat template: name one with data.template="):
        template_sha256(_config(write(*_chats(3))).data, plain)


def test_missing_or_unneeded_template_is_rejected(plain: Checkpoint, write: Callable[..., str]) -> None:
    with pytest.raises(InputError, match=r"data.template=/no.jinja cannot be read \(No such file"):
        template_sha256(_config(write(*_chats(3)), template="/no.jinja").data, plain)
    with pytest.raises(InputError, match=r"is for chats, but .* has none: leave it out"):
        template_sha256(_config(write({"text": "a"}), template="/no.jinja").data, plain)
    with pytest.raises(InputError, match="pydoc has no chats"):
        DataConfig(name="pydoc", template="/no.jinja")
