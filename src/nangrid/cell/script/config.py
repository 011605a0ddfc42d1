"""What is asked of a cell that is a run of a user's own function?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nangrid.cell.identity import hash_science
from nangrid.records.start_from import find_start


@dataclass(frozen=True)
class ScriptConfig:
    """One run of a function that builds a Trainer from levels, or trains in a loop of its own.

    It is asked for by the function's name.
    """

    module: str
    """`__main__` for the script that was started."""
    function: str
    file: str
    levels: dict[str, Any]
    repeat: int
    """0: with the function's own seeds, untouched. n: with n added to them."""
    horizon: int
    out: str
    threads: int = 1
    start_from: str | None = None
    resume: str = "unfinished"
    dry_run: bool = False

    @property
    def script(self) -> str:
        """As records show it."""
        return f"{Path(self.file).name}:{self.function}"

    def factors(self) -> dict[str, Any]:
        """As records show them; `seed` is the repeat."""
        gone_on = {} if self.start_from is None else find_start(self.start_from).factors()
        return {"seed": self.repeat, **self.levels, "script": self.script, **gone_on}

    def cell_id(self) -> str:
        """Over the levels and the file's content. What the file reads or imports is not looked at."""
        content = hashlib.sha256(Path(self.file).read_bytes()).hexdigest()
        return hash_science(self.factors() | {"script.sha256": content})
