"""Saves and restores every random generator that a step may draw from."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The states of all random generators that a step may draw from: Python, NumPy, torch on CPU and CUDA."""
    version, keys, gauss = random.getstate()
    name, numbers, *rest = np.random.get_state(legacy=True)
    return {
        "python": [version, list(keys), gauss],
        "numpy": [name, numbers, *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def check_random_states(states: Mapping[str, Any]) -> None:
    """Try the states on new generators; ValueError, TypeError or RuntimeError if one does not take its own."""
    version, keys, gauss = states["python"]
    random.Random().setstate((version, tuple(keys), gauss))
    np.random.RandomState().set_state(tuple(states["numpy"]))
    torch.Generator().set_state(states["torch"])


def set_random_states(states: Mapping[str, Any]) -> None:
    """Restore the states that `random_states` returned."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(list(states["cuda"]))
