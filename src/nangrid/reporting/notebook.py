"""How does a jupytext script become an executed notebook, as a file that opens in Jupyter and as HTML?"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from nangrid.records.atomic import write_bytes


def execute(script: Path, destination: Path, parameters: dict[str, Any]) -> Path:
    """Run a percent script with these parameters; write `<stem>.ipynb` and `<stem>.html` into `destination`.

    Returns the HTML. Raises papermill's PapermillExecutionError, which shows the cell that failed; nothing is written
    then.
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
    html, _ = HTMLExporter(
        exclude_input_prompt=True, exclude_output_prompt=True, mathjax_url="", require_js_url=""
    ).from_notebook_node(notebook)
    page = destination / f"{script.stem}.html"
    write_bytes(page, html.encode())
    return page
