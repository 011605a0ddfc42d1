"""Loads the pickled files of a Trainer's checkpoint, which may be a stranger's: tensors and plain values alone."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_pt_utils import safe_globals

from nangrid.records.errors import InputError
from nangrid.records.safety.files import open_regular


def load_pickle(path: Path) -> Any:
    """The content of a `.pt` or `.pth` file on the CPU; InputError for one that holds code, or is damaged."""
    try:
        _check_archive(path)
        with safe_globals():  # numpy's arrays, which random states are made of
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, LookupError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as e:
        why = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
        if "weights_only" in str(e) or "Weights only" in str(e):
            why = "it holds more than tensors and plain values, and could run code"
        raise InputError(f"{path} cannot be loaded ({why}): give another start_from=.") from e


def _check_archive(path: Path) -> None:
    """ValueError for a format older than torch 1.6, and for compressed members, which could expand without limit."""
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no archive that torch 1.6 or later has saved")
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its members are compressed")
