"""Reads which packages another Python has, for the cells that run in it (`python=`)."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nangrid.records.errors import InputError

PYTHON = "python"
"""The level that names the Python in which a cell runs; without it the cell runs in the launcher's."""
PACKAGES = ("nangrid", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "tokenizers")
"""Packages that decide a cell's numbers."""
OLDEST = (3, 11)
TIMEOUT_S = 60.0
_LISTED = 12
"""Packages that the difference between two Pythons names."""

# Two checkouts of a package may have the same version, and differ in the commit or folder that PEP 610 records.
_READ = """
import json, sys
from importlib.metadata import distributions
packages = {d.name.lower(): [d.version, d.read_text("direct_url.json") or ""] for d in distributions() if d.name}
print(json.dumps({"version": sys.version_info[:3], "packages": packages}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python and its packages."""

    version: str
    packages: dict[str, str]
    """Version by name in lower case."""
    sha256: str
    """Hash of the versions, and of the commits and folders that packages were installed from."""


def absolute_python(path: str) -> str:
    """The path of a Python that can run cells; InputError if it is none."""
    # Not resolved: a virtual environment's python is a link to the one that it was made from.
    python = os.path.abspath(Path(path).expanduser())
    read_interpreter(python)
    return python


@functools.cache
def read_interpreter(python: str) -> Interpreter:
    """The packages of the Python at this path; InputError if it does not run, or is older than 3.11."""
    try:
        answer = subprocess.run(
            [python, "-P", "-c", _READ], capture_output=True, text=True, check=True, timeout=TIMEOUT_S
        ).stdout
        found = json.loads(answer)
        version = tuple(found["version"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"python={python} is no Python that runs: give the path of one, such as envs/new/bin/python."
        ) from error
    if version < OLDEST:
        raise InputError(f"python={python} is Python {_dotted(version)}: give one of at least {_dotted(OLDEST)}.")
    canonical = json.dumps([version, sorted(found["packages"].items())])
    packages = {name: installed for name, (installed, _) in found["packages"].items()}
    return Interpreter(_dotted(version), packages, hashlib.sha256(canonical.encode()).hexdigest())


def python_science(python: str | None) -> dict[str, str]:
    """What decides the numbers of a cell that runs in this Python: its packages. Empty for the launcher's Python."""
    return {} if python is None else {"python.sha256": read_interpreter(python).sha256}


def difference(first: str | None, second: str | None) -> str:
    """The packages in which two Pythons differ, with both versions; those that decide a cell's numbers come first."""
    one, other = (read_interpreter(python or sys.executable) for python in (first, second))
    names = [*PACKAGES, *sorted({*one.packages, *other.packages} - {*PACKAGES})]
    pairs = [("Python", one.version, other.version)]
    pairs += [(name, one.packages.get(name, "none"), other.packages.get(name, "none")) for name in names]
    differing = [f"{name} {before} and {after}" for name, before, after in pairs if before != after]
    rest = [f"{len(differing) - _LISTED} more"] if len(differing) > _LISTED else []
    return ", ".join([*differing[:_LISTED], *rest]) or "no version"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
