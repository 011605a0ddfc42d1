"""With the core dependencies alone, every command and function names the extra that it needs, in one sentence."""

import re
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions, requires

import pytest

from nangrid.commands import COMMANDS

HIDE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
"""


@cache
def distributions(package: str, extra: str = "") -> frozenset[str]:
    """Names of the distributions that the package, or one of its extras, needs directly."""
    lines = [line for line in requires(package) or [] if ("extra ==" in line) == bool(extra)]
    marked = [line for line in lines if not extra or re.search(rf"extra == .{extra}.", line)]
    return frozenset(re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in marked)


def core_only(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that does not find what the extras install."""
    extras = distributions("nangrid", "grid") | distributions("nangrid", "report")
    needed = {"torch", "numpy", "safetensors"} | distributions("torch")
    hidden = {
        module
        for module, owners in packages_distributions().items()
        if {owner.lower().replace("_", "-") for owner in owners} & (extras - needed)
    }
    assert {"hydra", "transformers", "pandas", "matplotlib", "yaml"} <= hidden and "torch" not in hidden
    command = [sys.executable, "-c", HIDE.format(hidden=hidden) + code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_the_extra_it_needs(command: str) -> None:
    done = core_only(f"sys.argv[1:] = [{command!r}]\nfrom nangrid.commands import main\nraise SystemExit(main())")
    noun, extras = ("extras", "grid and report") if command == "report" else ("extra", "grid")
    needs = rf"nangrid {command} needs the {extras} {noun} \(\w+ is not installed\)"
    install = rf"pip install 'nangrid\[{extras.replace(' and ', ',')}\]'"
    assert re.fullmatch(f"{needs}: {install}\n", done.stderr), done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("nangrid.diagnose(dict, failing={}, reference={})", "nangrid.diagnose"),
        ("nangrid.integrations.watch_trainer", "nangrid.integrations"),
        ("from nangrid.integrations import watch_trainer", "nangrid.integrations"),
    ],
)
def test_a_function_names_the_extra_it_needs(code: str, what: str) -> None:
    done = core_only(f"import nangrid\ntry:\n    {code}\nexcept ImportError as error:\n    print(error)")
    pattern = rf"{what} needs the grid extra \(\w+ is not installed\): pip install 'nangrid\[grid\]'\n"
    assert re.fullmatch(pattern, done.stdout), done.stdout + done.stderr


def test_help_and_the_watch_need_no_extra() -> None:
    code = "sys.argv[1:] = ['--help']\nfrom nangrid.commands import main\nimport nangrid\nnangrid.Watch\n"
    done = core_only(code + "raise SystemExit(main())")
    assert done.returncode == 0 and "nangrid COMMAND" in done.stdout, done.stderr
