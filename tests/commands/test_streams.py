"""The commands with standard streams that are closed, full, or of a terminal that knows only ASCII."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nangrid.commands.exits import exit_code

PRINTING = """
from nangrid.commands.exits import exit_code
def command():
    print("Na\\xefve grid: 1 cell, 100 \\xb5s")
    {rest}
raise SystemExit(exit_code(command))
"""


def shell(redirection: str, rest: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that prints a line and then does `rest`."""
    line = f'"$0" -c "$1" {redirection}'
    return subprocess.run(
        ["bash", "-c", line, sys.executable, PRINTING.format(rest=rest)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&-"])
def test_closed_streams_are_no_error(redirection: str, tmp_path: Path) -> None:
    written = tmp_path / "written"
    rest = f"file = open({str(written)!r}, 'w'); file.write('record'); file.close()"
    done = shell(redirection, rest)
    assert (done.returncode, done.stderr) == (0, "")
    assert written.read_text() == "record"


@pytest.mark.parametrize("redirection", [">/dev/full", "| true; exit ${PIPESTATUS[0]}"])
def test_output_that_nobody_can_read_ends_without_a_traceback(redirection: str) -> None:
    done = shell(redirection, rest="import time; time.sleep(0.3); print('more')")
    assert done.returncode == 1 and done.stderr.count("\n") <= 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_an_ascii_terminal_gets_escapes(environment: dict[str, str]) -> None:
    done = shell("", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "Na\\xefve grid: 1 cell, 100 \\xb5s\n"


def test_a_second_ctrl_c_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            raise KeyboardInterrupt

    def command() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stderr", Interrupted())
    assert exit_code(command) == 130
