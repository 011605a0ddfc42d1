"""Encodes chats through a template, and masks the assistant's tokens."""

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
"""Prefix of every template. Some write today's date into each chat, but a cell must be the same tomorrow."""

Span = tuple[int, int]
"""Positions of the first character and of the one after the last."""


@dataclass(frozen=True)
class Template:
    """A Jinja template, and the name by which messages call it."""

    source: str
    name: str

    def render(self, messages: tuple[dict[str, Any], ...], **settings: Any) -> tuple[str, list[Span]]:
        """The rendered text, and the spans between `{% generation %}` tags if the template has any."""
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
    """Hash of the template and of the special tokens that it may write; None if the data has no chats.

    InputError if chats have no template, or if it is not valid Jinja.
    """
    if not has_chats(data):
        if data.template:
            raise InputError(f"data.template={data.template} is for chats, but {data.path} has none: leave it out.")
        return None
    template = find_template(data, checkpoint)
    _check(template)
    made_from = [template.source, _special_tokens(Path(checkpoint.path))]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def find_template(data: DataConfig, checkpoint: Checkpoint) -> Template:
    """The template in data.template, or else the tokenizer's."""
    if data.template:
        return Template(_read(data.template), f"data.template={data.template}")
    source = _own_template(Path(checkpoint.path))
    if source is None:
        raise InputError(
            f"{data.path} has chats, but the tokenizer of {checkpoint.path} has no chat template: "
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
    template = _settings(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several named templates
        template = {each["name"]: each["template"] for each in template}.get("default")
    return template


def _special_tokens(folder: Path) -> dict[str, Any]:
    settings = _settings(folder / "special_tokens_map.json") | _settings(folder / "tokenizer_config.json")
    return {key: value for key, value in settings.items() if key.endswith("_token")}


def _settings(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return settings


def _check(template: Template) -> None:
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template([], chat_template=TODAY + template.source)
    except TemplateSyntaxError as error:
        where = error.lineno - TODAY.count("\n")
        raise InputError(
            f"{template.name} is not a valid Jinja template (line {where}: {error.message}): "
            "name another with data.template=/path/to/template.jinja."
        ) from error


@dataclass(frozen=True)
class ChatEncoder:
    """Encodes chats by one template and one tokenizer."""

    template: Template
    special_tokens: Mapping[str, str]
    """Special tokens by the name that templates use: bos_token, eos_token, ..."""
    special_texts: tuple[str, ...]
    """Text of every special token; a turn may end with one."""
    bos: int | None

    @classmethod
    def of(cls, template: Template, tokenizer: PreTrainedTokenizerBase) -> ChatEncoder:
        """Encoder with the special tokens of `tokenizer`."""
        special_texts = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        return cls(template, dict(tokenizer.special_tokens_map), special_texts, tokenizer.bos_token_id)

    def encode(self, chat: Chat, tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
        """Ids of the chat, without a leading bos."""
        return self._ids(tokenizer.encode(self._whole(chat)[0], add_special_tokens=False).ids)

    def encode_with_assistant_mask(
        self, chat: Chat, tokenizer: Tokenizer
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Ids of the chat, without a leading bos, and the mask of the assistant's tokens."""
        text, marked = self._whole(chat)
        spans = marked or [
            self._turn(chat, number, text)
            for number, message in enumerate(chat.messages)
            if message["role"] == "assistant"
        ]
        if not spans:
            raise InputError(
                f"{chat.where} has no assistant message, but data.labels=completion trains on nothing else: "
                "give a message the role assistant, or type data.labels=all."
            )
        encoding = tokenizer.encode(text, add_special_tokens=False)
        mask = _overlaps(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), spans, len(text))
        ids = self._ids(encoding.ids)
        return ids, mask[len(mask) - len(ids) :]

    def _ids(self, ids: list[int]) -> npt.NDArray[np.int64]:
        # Most templates begin with bos, but data.bos decides whether a sample does.
        return np.array(ids[1:] if ids and ids[0] == self.bos else ids, dtype=np.int64)

    def _whole(self, chat: Chat) -> tuple[str, list[Span]]:
        try:
            return self.template.render(chat.messages, **self.special_tokens)
        except Exception as error:  # a template is a program and may raise anything
            why = " ".join(str(error).split()) or type(error).__name__
            raise InputError(
                f"{chat.where}: {self.template.name} refuses this chat ({why}): "
                "correct the messages, or name another template with data.template=/path/to/template.jinja."
            ) from error

    def _turn(self, chat: Chat, number: int, whole: str) -> Span:
        """Span from the end of the generation prompt to the special token that ends the turn."""
        try:
            prompt, _ = self.template.render(chat.messages[:number], add_generation_prompt=True, **self.special_tokens)
            answered, _ = self.template.render(chat.messages[: number + 1], **self.special_tokens)
        except Exception:  # of a part of the chat; the whole was rendered
            prompt, answered = whole, ""
        if not (whole.startswith(answered) and answered.startswith(prompt)):
            raise InputError(
                f"{chat.where}, message {number + 1}: {self.template.name} writes a message differently when others "
                "follow it, so the assistant's part cannot be found: put {% generation %} and {% endgeneration %} "
                "around it in data.template=/path/to/template.jinja, or type data.labels=all."
            )
        turn = answered[len(prompt) :]
        bare = turn.rstrip()
        return len(prompt), len(prompt) + len(bare if bare.endswith(self.special_texts) else turn)


def _overlaps(offsets: npt.NDArray[np.int64], spans: list[Span], length: int) -> npt.NDArray[np.bool_]:
    """Mask of the tokens that hold a character of a span; one that crosses an edge counts."""
    inside = np.zeros(length + 1, dtype=np.int64)
    for start, end in spans:
        inside[start + 1 : end + 1] = 1
    before = np.cumsum(inside)
    mask: npt.NDArray[np.bool_] = before[offsets[:, 1]] > before[offsets[:, 0]]
    return mask
