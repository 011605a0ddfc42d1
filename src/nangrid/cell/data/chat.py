"""How does a chat become a text, and which part of it does the assistant say?"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nangrid.cell.config import DataConfig
from nangrid.cell.data.documents import Chat, has_chats
from nangrid.cell.model.checkpoint import Checkpoint
from nangrid.records.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
TODAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}\n"
"""Put before a template: some write the date into every chat, and the same cell must read the same tomorrow."""

Span = tuple[int, int]
"""Characters, from the first to the one behind the last."""


@dataclass(frozen=True)
class Template:
    """A Jinja template, and what a user knows it by."""

    source: str
    name: str

    def render(self, messages: tuple[dict[str, Any], ...], **settings: Any) -> tuple[str, list[Span]]:
        """The text, and where it has `{% generation %}` marks what stands between them."""
        from transformers.utils.chat_template_utils import render_jinja_template

        marked = MARKED.search(self.source) is not None
        texts, spans = render_jinja_template(
            [list(messages)],
            chat_template=TODAY + self.source,
            return_assistant_tokens_mask=marked,
            **settings,
        )
        return texts[0], [(start, end) for start, end in spans[0]] if marked else []


def template_sha256(data: DataConfig, checkpoint: Checkpoint) -> str | None:
    """Hash of the template and of the special tokens it may write; None where there is no chat.

    InputError if there is none, or if it is no Jinja.
    """
    if not has_chats(data):
        if data.template:
            raise InputError(f"data.template={data.template} is for chats and {data.path} has none: leave it out.")
        return None
    template = find_template(data, checkpoint)
    _check(template)
    made_from = [template.source, _special_tokens(Path(checkpoint.path))]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def find_template(data: DataConfig, checkpoint: Checkpoint) -> Template:
    """That of data.template, or else the tokenizer's own."""
    if data.template:
        return Template(_read(data.template), f"data.template={data.template}")
    source = _own_template(Path(checkpoint.path))
    if source is None:
        raise InputError(
            f"{data.path} has chats and the tokenizer of {checkpoint.path} has no chat template: "
            "name one with data.template=/path/to/template.jinja."
        )
    return Template(source, f"the chat template of {checkpoint.path}")


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(
            f"data.template={path} cannot be read ({why}): give data.template=/path/to/template.jinja."
        ) from error


def _own_template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text()
    found = _settings(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # of several, each with a name
        found = {each["name"]: each["template"] for each in found}.get("default")
    return found


def _special_tokens(folder: Path) -> dict[str, Any]:
    settings = _settings(folder / "special_tokens_map.json") | _settings(folder / "tokenizer_config.json")
    return {key: value for key, value in settings.items() if key.endswith("_token")}


def _settings(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _check(template: Template) -> None:
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template([], chat_template=TODAY + template.source)
    except TemplateSyntaxError as error:
        where = error.lineno - TODAY.count("\n")
        raise InputError(
            f"{template.name} is no Jinja template (line {where}: {error.message}): "
            "name another with data.template=/path/to/template.jinja."
        ) from error


@dataclass(frozen=True)
class ChatEncoder:
    """Chats as ids, by one template and one tokenizer."""

    template: Template
    special_tokens: Mapping[str, str]
    """By name, as templates write them: bos_token, eos_token, ..."""
    marks: tuple[str, ...]
    """The text of every special token: a turn may end with one."""
    bos: int | None

    @classmethod
    def of(cls, template: Template, tokenizer: PreTrainedTokenizerBase) -> ChatEncoder:
        """With the special tokens of a tokenizer."""
        marks = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        return cls(template, dict(tokenizer.special_tokens_map), marks, tokenizer.bos_token_id)

    def encode(self, chat: Chat, tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
        """The ids, without a bos in front."""
        return self._ids(tokenizer.encode(self._whole(chat)[0], add_special_tokens=False).ids)

    def encode_with_assistant_mask(
        self, chat: Chat, tokenizer: Tokenizer
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """The ids, without a bos in front, and which of them the assistant says."""
        text, marked = self._whole(chat)
        spans = marked or [
            self._turn(chat, number, text)
            for number, message in enumerate(chat.messages)
            if message["role"] == "assistant"
        ]
        if not spans:
            raise InputError(
                f"{chat.where} has nothing that the assistant says, and data.labels=completion learns nothing else: "
                "give a message the role assistant, or type data.labels=all."
            )
        encoding = tokenizer.encode(text, add_special_tokens=False)
        said = _overlaps(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), spans, len(text))
        ids = self._ids(encoding.ids)
        return ids, said[len(said) - len(ids) :]

    def _ids(self, ids: list[int]) -> npt.NDArray[np.int64]:
        # Most templates begin with bos. Whether a sample does is data.bos's to say.
        return np.array(ids[1:] if ids and ids[0] == self.bos else ids, dtype=np.int64)

    def _whole(self, chat: Chat) -> tuple[str, list[Span]]:
        try:
            return self.template.render(chat.messages, **self.special_tokens)
        except Exception as error:  # a template is a program: it raises what it likes
            why = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{chat.where}: {self.template.name} refuses it ({why}): "
                "mend the messages, or name another template with data.template=/path/to/template.jinja."
            ) from error

    def _turn(self, chat: Chat, number: int, whole: str) -> Span:
        """What follows the words that ask the assistant to speak, to the special token that ends the turn."""
        try:
            asked, _ = self.template.render(chat.messages[:number], add_generation_prompt=True, **self.special_tokens)
            answered, _ = self.template.render(chat.messages[: number + 1], **self.special_tokens)
        except Exception:  # of a part of the chat; the whole was rendered
            asked, answered = whole, ""
        if not (whole.startswith(answered) and answered.startswith(asked)):
            raise InputError(
                f"{chat.where}, message {number + 1}: {self.template.name} writes a message another way where others "
                "follow it, so what the assistant says cannot be told: put {% generation %} and {% endgeneration %} "
                "around it in data.template=/path/to/template.jinja, or type data.labels=all."
            )
        turn = answered[len(asked) :]
        bare = turn.rstrip()
        return len(asked), len(asked) + len(bare if bare.endswith(self.marks) else turn)


def _overlaps(offsets: npt.NDArray[np.int64], spans: list[Span], length: int) -> npt.NDArray[np.bool_]:
    """Which tokens hold a character of a span: one that spans an edge does."""
    inside = np.zeros(length + 1, dtype=np.int64)
    for start, end in spans:
        inside[start + 1 : end + 1] = 1
    before = np.cumsum(inside)
    said: npt.NDArray[np.bool_] = before[offsets[:, 1]] > before[offsets[:, 0]]
    return said
