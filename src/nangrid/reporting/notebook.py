"""Executes a jupytext script as a notebook and writes it for Jupyter and as HTML."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nangrid.records.atomic import write_bytes
from nangrid.records.safety.secret import secrets
from nangrid.records.safety.text import printable
from nangrid.reporting.page import POLICY

_KEPT = (
    *("PATH", "HOME", "USER", "LANG", "LC_", "TZ", "TMPDIR", "XDG_", "LD_LIBRARY_PATH", "OMP_", "MKL_"),
    *("PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX", "JUPYTER_PATH", "JUPYTER_DATA", "JUPYTER_CONFIG", "IPYTHONDIR"),
)
"""Beginnings of the environment variables that the process inherits: no token, no key."""


def execute(script: Path, destination: Path, parameters: dict[str, Any]) -> None:
    """Run a percent script with these parameters; write `<stem>.ipynb` and `<stem>.html` into `destination`.

    Raises papermill's PapermillExecutionError, which shows the failing cell, before anything is written.
    """
    import jupytext
    import nbformat
    import papermill
    from nbconvert import HTMLExporter

    logging.getLogger("papermill").setLevel(logging.WARNING)
    notebook = papermill.execute_notebook(
        jupytext.read(script),
        None,
        parameters=parameters,
        kernel_name="python3",
        progress_bar=False,
        extra_arguments=["--log-level=40"],
    )
    write_bytes(destination / f"{script.stem}.ipynb", nbformat.writes(notebook).encode())
    exporter = HTMLExporter(exclude_input_prompt=True, exclude_output_prompt=True, mathjax_url="", require_js_url="")
    html, _ = exporter.from_notebook_node(notebook)
    html = html.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{POLICY}">', 1)
    write_bytes(destination / f"{script.stem}.html", printable(html).encode())


def begin(script: Path, destination: Path, parameters: dict[str, Any]) -> subprocess.Popen[str]:
    """Start `execute` in another process, so that the caller can go on meanwhile; paths must be absolute.

    Python, IPython and nbconvert's templates would take modules and files from the working directory, which may be a
    stranger's grid. So the process has an empty one of its own, and of the environment only what Python needs.
    """
    arguments = [str(script), str(destination), json.dumps(parameters)]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "nangrid.reporting.notebook", *arguments],
        cwd="/",
        env=_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key.startswith(_KEPT) and key not in secrets()}
    return kept | {"PYTHONSAFEPATH": "1"}


def main(arguments: Sequence[str]) -> None:
    """Execute in an empty working directory: script, destination, and parameters as JSON."""
    script, destination, parameters = arguments
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        execute(Path(script), Path(destination), json.loads(parameters))


if __name__ == "__main__":
    main(sys.argv[1:])
