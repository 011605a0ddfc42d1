"""Writes the JSON schemas of the commands' output: `python -m nangrid.records.output.schemas`."""

from __future__ import annotations

import json
from pathlib import Path

from nangrid.records.output.answer import Answer
from nangrid.records.output.results import CheckResult, DiagnoseResult, ReportResult, RunResult, StatusResult
from nangrid.records.output.schema import json_schema

PRINTED: dict[str, type] = {
    "why": Answer,
    "run": RunResult,
    "report": ReportResult,
    "diagnose": DiagnoseResult,
    "check": CheckResult,
    "status": StatusResult,
}
"""What each command prints with `--json`."""
FOLDER = Path(__file__).parent / "schemas"


def path_of(command: str) -> Path:
    """The file that holds the schema of a command's output, in a checkout and in the wheel."""
    return FOLDER / f"{command}.json"


def text_of(command: str) -> str:
    """The schema as it is in the file."""
    return json.dumps(json_schema(PRINTED[command]), indent=1) + "\n"


if __name__ == "__main__":
    for name in PRINTED:
        path_of(name).write_text(text_of(name))
