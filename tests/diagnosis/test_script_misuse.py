"""nangrid.diagnose on scripts that misbehave in their cells' processes; see tests/misuses.py for the others."""

import subprocess
import sys
from pathlib import Path

import pytest

from nangrid.cell.script.config import ScriptConfig

SCRIPT = """
import os, sys, threading, time
import nangrid
from nangrid.records.errors import InputError

def make_trainer(levels):
    {body}

def search():
    try:
        nangrid.diagnose(make_trainer, failing={{"lr": 1.0}}, reference={{"lr": 0.1}}, out=sys.argv[1], horizon=2)
    except InputError as error:
        print("refused:", error)

{call}
"""
GUARDED = 'if __name__ == "__main__":\n    search()'


def run_script(folder: Path, body: str, call: str = GUARDED) -> str:
    script = folder / "train.py"
    script.write_text(SCRIPT.format(body=body, call=call))
    command = [sys.executable, str(script), str(folder / "out")]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False).stdout


def test_a_script_without_main_guard_is_told_so(tmp_path: Path) -> None:
    assert 'put the call under if __name__ == "__main__":' in run_script(tmp_path, "pass", "search()")


def test_a_make_trainer_that_raises_is_quoted(tmp_path: Path) -> None:
    said = run_script(tmp_path, "raise KeyError('tokenizer')")
    assert "refused: failing crashes with KeyError: 'tokenizer' (see " in said


def test_a_thread_that_never_ends_holds_up_no_search(tmp_path: Path) -> None:
    said = run_script(tmp_path, "threading.Thread(target=time.sleep, args=[9999]).start(); return 7")
    assert "refused: train.py:make_trainer returned a int" in said


def config(script: Path) -> ScriptConfig:
    return ScriptConfig("__main__", "make_trainer", str(script), {"lr": 1.0}, 0, 4, "out")


@pytest.mark.parametrize("line", ["import helper", "def f():\n    from helper import x", "import sub.inner"])
def test_an_edited_module_beside_the_script_makes_another_cell(line: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "__init__.py").touch()
    (tmp_path / "unused.py").write_text("x = 1")
    for path in (tmp_path / "helper.py", tmp_path / "sub" / "inner.py"):
        path.write_text("x = 1")
    script = tmp_path / "train.py"
    script.write_text(f"import torch\n{line}\n")
    before = config(script).cell_id()
    (tmp_path / "unused.py").write_text("x = 2")
    assert config(script).cell_id() == before
    for path in (tmp_path / "helper.py", tmp_path / "sub" / "inner.py"):
        path.write_text("x = 2")
    assert config(script).cell_id() != before
