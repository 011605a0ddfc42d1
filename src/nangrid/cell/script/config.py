"""Describes a cell that is one run of a function in the user's script."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from dataclasses import dataclass
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any, ClassVar

from nangrid.cell.identity import hash_science
from nangrid.cell.interpreter import PYTHON, absolute_python, python_science
from nangrid.records.start_from import files_sha256, find_start


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
    def python(self) -> str | None:
        """The Python in which the function runs; None is the launcher's."""
        python = self.levels.get(PYTHON)
        return None if python is None else absolute_python(str(python))

    @property
    def script(self) -> str:
        """The function as records name it: `train.py:make_trainer`."""
        return f"{Path(self.file).name}:{self.function}"

    def factors(self) -> dict[str, Any]:
        """Factors as records show them; `seed` is the repeat."""
        resumed = {} if self.start_from is None else find_start(self.start_from).factors()
        return {"seed": self.repeat, **self.levels, "script": self.script, **resumed}

    def cell_id(self) -> str:
        """Hash of the levels, of the file's content, and of the modules in its folder that it imports.

        Installed packages, other than those of the level `python`, and the files that the script reads do not count.
        """
        content = {"script.sha256": hashlib.sha256(Path(self.file).read_bytes()).hexdigest()}
        if modules := _local_modules(self.file):
            content["script.modules.sha256"] = files_sha256(modules)
        return hash_science(self.factors() | content | python_science(self.python))


@functools.cache
def _local_modules(file: str) -> list[Path]:
    """Files in the folder of the script, or below it, that it imports, at its top or later."""
    folder = Path(file).resolve().parent
    finder = ModuleFinder(path=[str(folder)])
    with contextlib.suppress(Exception):  # code that cannot be parsed fails when it is run
        finder.run_script(file)
    paths = {vars(module).get("__file__") for name, module in finder.modules.items() if name != "__main__"}
    return [Path(path) for path in paths if path]
