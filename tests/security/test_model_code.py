"""A checkpoint that brings Python code of its own: the code never runs, and a model that needs it is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nangrid.cell.config import ModelConfig
from nangrid.cell.model.checkpoint import locate_checkpoint
from nangrid.commands.check import main as check

MODEL_CODE = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
CODE = """
import pathlib
pathlib.Path({canary!r}).touch()
from transformers import PretrainedConfig as Config, PreTrainedModel as Model, PreTrainedTokenizerFast as Tokenizer
"""


@pytest.fixture
def strangers_model(tmp_path: Path, outside: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(locate_checkpoint(ModelConfig(name="tiny", source="tiny", layers=2)).path, folder)
    (folder / "evil.py").write_text(CODE.format(canary=str(outside / "canary")))
    return folder


def add(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_a_model_that_needs_its_own_code_is_refused(
    strangers_model: Path, outside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(strangers_model / "config.json", {"model_type": "mine", "auto_map": MODEL_CODE})
    assert check(["model=hub", f"model.id={strangers_model}", "data=glossary", "tracker=none"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"the model in {strangers_model} brings its own code, which nangrid never runs: ")
    assert not (outside / "canary").exists()


def test_a_model_that_transformers_knows_is_loaded_without_the_code_beside_it(
    strangers_model: Path, outside: Path
) -> None:
    add(strangers_model / "config.json", {"auto_map": MODEL_CODE})
    tokenizer = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}}
    add(strangers_model / "tokenizer_config.json", tokenizer)
    assert check(["model=hub", f"model.id={strangers_model}", "data=glossary", "tracker=none"]) == 0
    assert not (outside / "canary").exists()
