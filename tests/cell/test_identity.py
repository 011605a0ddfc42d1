import copy
import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from environments import make_environment
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nangrid.cell.config import CONF_DIR, Config, factors
from nangrid.cell.identity import cell_factors, cell_id, hash_science, starred
from nangrid.cell.model import checkpoint
from nangrid.cell.model.checkpoint import Checkpoint
from nangrid.records.errors import InputError
from nangrid.records.safety.names import GROUPS

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
sciences = st.dictionaries(st.text(), scalars | st.lists(st.text()), max_size=8)


def composed(*overrides: str) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = OmegaConf.to_object(compose("config", ["model=tiny", *overrides]))
    assert isinstance(config, Config)
    return config


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [*value, "other"] if isinstance(value, list) else f"{value}-other"


@settings(deadline=None)
@given(sciences, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(science: dict[str, Any], shuffle: random.Random) -> None:
    items = list(science.items())
    shuffle.shuffle(items)
    assert hash_science(dict(items)) == hash_science(science)


@settings(deadline=None)
@given(sciences, st.text(), scalars)
def test_any_changed_value_changes_the_id(science: dict[str, Any], key: str, value: Any) -> None:
    other = science | {key: value}
    same = key in science and repr(science[key]) == repr(value)
    assert (hash_science(other) == hash_science(science)) == same


BASE = composed()
SCIENCE = ["seed", "processes", *(f"{group}.{key}" for group in GROUPS for key in vars(getattr(BASE, group)))]
for file in ("data.path", "data.template"):  # the content counts, see below
    SCIENCE.remove(file)
OTHER = [
    "horizon",
    "out",
    "resume",
    "dry_run",
    "threads",
    "headroom",
    "keep_every",
    "tracker.name",
    "tracker.mode",
    "tracker.project",
]


def with_other(key: str) -> Config:
    """The base with another value of one field; past validation, what is hashed need not be runnable."""
    config = copy.deepcopy(BASE)
    *groups, name = key.split(".")
    holder = getattr(config, groups[0]) if groups else config
    setattr(holder, name, changed(getattr(holder, name)))
    return config


@pytest.fixture(autouse=True)
def known_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer is not at stake here, and to make the tiny one takes seconds."""
    monkeypatch.setattr(checkpoint, "locate_checkpoint", lambda model: Checkpoint(str(model.id), "0" * 64))


@pytest.mark.parametrize("key", SCIENCE)
def test_every_scientific_key_changes_the_id(key: str) -> None:
    assert cell_id(with_other(key)) != cell_id(BASE)


@pytest.mark.parametrize("key", OTHER)
def test_no_other_key_changes_the_id(key: str) -> None:
    assert cell_id(with_other(key)) == cell_id(BASE)


def test_every_key_is_scientific_or_not() -> None:
    keys = {f"{key}.{name}" for key, value in vars(BASE).items() if hasattr(value, "__dict__") for name in vars(value)}
    keys |= {key for key, value in vars(BASE).items() if not hasattr(value, "__dict__")}
    assert keys == {*SCIENCE, *OTHER, "tracker.entity", "data.path", "data.template", "start_from", "python"}


def test_id_depends_on_file_content_not_path(tmp_path: Path) -> None:
    first, same, other = (tmp_path / name for name in ("first.jsonl", "same.jsonl", "other.jsonl"))
    for path, text in ((first, "a"), (same, "a"), (other, "b")):
        path.write_text(f'{{"text": "{text}"}}\n')
    ids = [cell_id(composed("data=jsonl", f"data.path={path}")) for path in (first, same, other)]
    assert ids[0] == ids[1] != ids[2]


def test_id_depends_on_the_packages_of_another_python_not_on_its_path(tmp_path: Path) -> None:
    pythons = [make_environment(tmp_path / name, scaling=(name[0], "")) for name in ("1-here", "1-there", "2-there")]
    ids = [cell_id(dataclasses.replace(BASE, python=python)) for python in pythons]
    assert ids[0] == ids[1] != ids[2] and cell_id(BASE) not in ids


def test_id_depends_on_template_content_only_with_chats(tmp_path: Path) -> None:
    chats, texts = tmp_path / "chats.jsonl", tmp_path / "texts.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    texts.write_text('{"text": "a"}\n')
    templates = [tmp_path / name for name in ("first.jinja", "same.jinja", "other.jinja")]
    for path, text in zip(templates, ("{{ messages }}", "{{ messages }}", "{{ messages[0] }}"), strict=True):
        path.write_text(text)
    ids = [cell_id(composed("data=jsonl", f"data.path={chats}", f"data.template={path}")) for path in templates]
    assert ids[0] == ids[1] != ids[2]
    with pytest.raises(InputError, match="leave it out"):
        cell_id(composed("data=jsonl", f"data.path={texts}", f"data.template={templates[0]}"))


def test_id_depends_on_the_tokenizers_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "locate_checkpoint", lambda model: Checkpoint(str(tmp_path), "0" * 64))
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    ids = []
    for template in ("{{ messages }}", "{{ messages }}", "{{ messages[0] }}"):
        (tmp_path / "chat_template.jinja").write_text(template)
        ids.append(cell_id(composed("data=jsonl", f"data.path={chats}")))
    assert ids[0] == ids[1] != ids[2]


def test_added_keys_keep_existing_ids(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    assert cell_id(composed("data=jsonl", f"data.path={tmp_path / 'texts.jsonl'}")) == "898857e113a4"


def test_id_depends_on_model_weights_not_path(tmp_path: Path) -> None:
    for name, weights in (("first", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    ids = [cell_id(composed("model=hub", f"model.id={tmp_path / name}")) for name in ("first", "same", "other")]
    assert ids[0] == ids[1] != ids[2]


def test_id_depends_on_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cell_id(BASE)
    monkeypatch.setattr(checkpoint, "locate_checkpoint", lambda model: Checkpoint("", "1" * 64))
    assert cell_id(BASE) != before


def test_overridden_field_stars_its_level() -> None:
    assert starred(BASE) == frozenset()
    assert starred(composed("dtype.adapter=fp32", "optim.lr=1e-3")) == {"dtype"}, "optim=... fixes no lr"
    shown = cell_factors(composed("dtype.adapter=fp32"))
    assert (shown["dtype"], shown["dtype.adapter"], shown["dtype.storage"]) == ("bf16*", "fp32", "bf16")
    assert starred(composed("dtype.adapter=bf16")) == frozenset(), "as the level has it"
    assert starred(composed("model.layers=4")) == {"model"}


def test_star_does_not_change_the_id() -> None:
    config = composed("dtype.adapter=fp32")
    assert cell_factors(config) != factors(config)
    assert len(cell_id(config)) == 12 and cell_id(config) != cell_id(BASE)
