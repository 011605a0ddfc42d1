"""Asks transformers' DebugUnderflowOverflow: the module of the last frame that it prints when it stops."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from case import Case
from tools.answer import Answer, Counting
from transformers.debug_utils import DebugUnderflowOverflow


def ask(case: Case, folder: Path) -> Answer:
    bare, said = Counting(case), io.StringIO()
    DebugUnderflowOverflow(bare.subject.model)
    try:
        with contextlib.redirect_stdout(said):
            bare.run()
    except ValueError as error:
        if "inf/nan detected" not in str(error):
            raise
        # The last frame begins with " <17 blanks>NAME Class"; which of its tensors is bad stands at the top.
        text = said.getvalue()
        frames = [line for line in text.splitlines() if re.match(r" {17,}\S* ?\w+$", line) and "***" not in line]
        words = frames[-1].split() if frames else [""]
        bad = re.findall(r"^(\S+) has (?:nans|infs)$", text, re.MULTILINE)
        where = "output" if all(name.startswith("output") for name in bad) else "input"
        return Answer(step=bare.step, module=words[0] if len(words) > 1 else "", where=where)
    return Answer()
