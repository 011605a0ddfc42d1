"""Executes a jupytext script as a notebook and writes it for Jupyter and as HTML."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from nangrid.records.atomic import write_bytes


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
    write_bytes(destination / f"{script.stem}.html", html.encode())


def begin(script: Path, destination: Path, parameters: dict[str, Any]) -> subprocess.Popen[str]:
    """Start `execute` in another process, so that the caller can go on meanwhile."""
    arguments = [str(script), str(destination), json.dumps(parameters)]
    return subprocess.Popen(
        [sys.executable, "-m", "nangrid.reporting.notebook", *arguments], stderr=subprocess.PIPE, text=True
    )


if __name__ == "__main__":
    execute(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
