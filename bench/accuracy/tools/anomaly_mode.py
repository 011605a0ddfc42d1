"""Asks torch.autograd.set_detect_anomaly: the node that it names, and the script's line in its traceback."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from case import Case
from observer import is_script
from tools.answer import Answer, Counting


def ask(case: Case, folder: Path) -> Answer:
    bare = Counting(case)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            with torch.autograd.set_detect_anomaly(True):
                bare.run()
        except RuntimeError as error:
            return anomaly(error, heard, bare.step)
    return Answer()


def anomaly(error: RuntimeError, heard: Iterable[warnings.WarningMessage], step: int) -> Answer:
    """What the error and the warnings of anomaly mode say; raises an error that is not its own."""
    node = re.search(r"Function '(\w+)' returned nan", str(error))
    if not node:
        raise error
    found = [m for w in heard for m in re.findall(r'File "([^"]+)", line (\d+)', str(w.message))]
    own = [f"{Path(path).name}:{line}" for path, line in found if is_script(path)]
    return Answer(step=step, node=node[1], line=own[-1] if own else "")
