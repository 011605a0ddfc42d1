"""Every command that the README shows can be typed as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from nangrid.commands.run import main as run
from nangrid.commands.status import main as status
from nangrid.records.grid import GridDirectory

README = (Path(__file__).parents[2] / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"python -m src\.(.+?)(?=`|\s{2,}#|\n(?!upcast=)|$)", README)))


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_composes(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *arguments = shlex.split(command)
    if name == "run":
        monkeypatch.setenv("WANDB_API_KEY", "none")
        assert run([*arguments, "dry_run=true"]) == 0
    else:
        assert name == "status"
        GridDirectory.open(tmp_path)
        monkeypatch.setattr("nangrid.commands.status.QUIET_S", 0.1)
        assert status([str(tmp_path), *arguments[1:]]) == 0
