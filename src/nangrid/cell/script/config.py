"""Describes a cell that is one run of a function in the user's script."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nangrid.cell.identity import hash_science
from nangrid.records.start_from import find_start


@dataclass(frozen=True)
class ScriptConfig:
    """One run of a function that builds a Trainer from levels, or trains in its own loop.

    The function is identified by module and name, because another process must find it.
    """

    module: str
    """`__main__` for the script that was started."""
    function: str
    file: str
    levels: dict[str, Any]
    repeat: int
    """Added to every seed that the function sets; 0 leaves them unchanged."""
    horizon: int
    out: str
    threads: int = 1
    start_from: str | None = None
    # what the grid asks of a Config; a diagnosis of a script always resumes, and is no dry run
    resume: ClassVar[str] = "unfinished"
    dry_run: ClassVar[bool] = False

    @property
    def script(self) -> str:
        """The function as records name it: `train.py:make_trainer`."""
        return f"{Path(self.file).name}:{self.function}"

    def factors(self) -> dict[str, Any]:
        """Factors as records show them; `seed` is the repeat."""
        resumed = {} if self.start_from is None else find_start(self.start_from).factors()
        return {"seed": self.repeat, **self.levels, "script": self.script, **resumed}

    def cell_id(self) -> str:
        """Hash of the levels and of the file's content. What the file imports or reads does not count."""
        content = hashlib.sha256(Path(self.file).read_bytes()).hexdigest()
        return hash_science(self.factors() | {"script.sha256": content})
