"""Locates a model's files and identifies its tokenizer.

Does not import torch once the files are on the machine, because planning a grid needs it for each cell.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from nangrid.cell.cache import file_sha256
from nangrid.cell.config import ModelConfig
from nangrid.cell.model.gemma import gemma3_270m
from nangrid.cell.model.tiny import tiny_gemma
from nangrid.records.errors import InputError

TINY_LAYERS = 12
WEIGHTS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
TOKENIZER = ("*.model", "vocab*", "merges.txt", "tekken.json")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that `from_pretrained` can load."""

    path: str
    tokenizer_sha256: str


def locate_checkpoint(model: ModelConfig) -> Checkpoint:
    """Checkpoint of the model; made or downloaded first if it is not on the machine."""
    if model.source == "package":
        folder = gemma3_270m()
    elif model.source == "tiny":
        folder = tiny_gemma(model.layers or TINY_LAYERS)
    else:
        folder = _given(str(model.id))
    return Checkpoint(str(folder), _tokenizer_sha256(folder))


def _given(model_id: str) -> Path:
    folder = Path(model_id).expanduser()
    if not folder.is_dir():
        return _from_hub(model_id)
    if not (folder / "config.json").is_file():
        raise InputError(
            f"model.id={model_id} is not a checkpoint, because it has no config.json: "
            "give the folder that save_pretrained wrote, model.id=/path/to/model."
        )
    return folder.resolve()


def _from_hub(model_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(model_id, allow_patterns=list(WEIGHTS)))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"model.id={model_id} is not a local folder and cannot be downloaded from the Hugging Face hub "
            f"({type(error).__name__}): give a local path: model.id=/path/to/model."
        ) from error


def _tokenizer_sha256(folder: Path) -> str:
    whole = folder / "tokenizer.json"
    if whole.is_file():
        return file_sha256(whole)
    parts = sorted({path for pattern in TOKENIZER for path in folder.glob(pattern)})
    if not parts:
        raise InputError(
            f"the model in {folder} has no tokenizer: put its tokenizer.json next to config.json, "
            "or give another folder with model.id=/path/to/model."
        )
    hashes = [(path.name, file_sha256(path)) for path in parts]
    return hashlib.sha256(repr(hashes).encode()).hexdigest()
