"""Usage lines name a command that the user can type."""

import importlib
import sys

import pytest

PARSED = ("check", "diagnose", "replay", "report", "status")


@pytest.mark.parametrize("command", PARSED)
@pytest.mark.parametrize(
    ("program", "prefix"), [("/venv/bin/nangrid", "nangrid "), ("/checkout/src/x.py", "python -m src.")]
)
def test_usage_names_the_command_that_was_typed(
    command: str, program: str, prefix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit):
        importlib.import_module(f"nangrid.commands.{command}").main(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: {prefix}{command} ")
    assert ("python -m" in shown) == (prefix != "nangrid ")
