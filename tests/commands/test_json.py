"""What the commands print with `--json` fits the committed schemas, and standard output holds nothing else."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fake_cell import plan_in

from nangrid.commands.check import main as check
from nangrid.commands.status import main as status
from nangrid.grid.progress import report_steps
from nangrid.grid.request import write_request
from nangrid.records.grid import GridDirectory
from nangrid.records.output.schemas import PRINTED, path_of, text_of


def printed(command: str, captured: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON on standard output, which fits the schema of the command."""
    value: dict[str, Any] = json.loads(captured.readouterr().out)
    jsonschema.validate(value, json.loads(path_of(command).read_text()))
    return value


@pytest.mark.parametrize("command", PRINTED)
def test_the_committed_schema_is_that_of_the_code(command: str) -> None:
    """`python -m nangrid.records.output.schemas` writes them. A changed field needs another `schema` number."""
    assert path_of(command).read_text() == text_of(command)
    jsonschema.Draft202012Validator.check_schema(json.loads(text_of(command)))


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    levels = ["model=tiny", "data=glossary", "data.bos=false", "tracker=none", "dtype=silent_fp16", "init=zero"]
    assert check([*levels, f"out={tmp_path}", "--json"]) == 0
    value = printed("check", capsys)
    assert {"zero-rows", "silent-fp16-storage"} <= {finding["check"] for finding in value["findings"]}


def test_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = GridDirectory.open(tmp_path)
    for seed in (0, 1):
        write_request(plan_in(tmp_path, seed), grid.grid_id)
    report_steps(plan_in(tmp_path, 0).directory(), 16)(3, float("nan"))
    assert status([str(tmp_path), "--json"]) == 0
    value = printed("status", capsys)
    assert value["counts"] == {"unfinished": 1, "waiting": 1} and value["seconds_left"] is None
    assert {(cell["state"], cell["steps_done"], cell["loss"]) for cell in value["cells"]} == {
        ("unfinished", 4, "nan"),
        ("waiting", 0, None),
    }
