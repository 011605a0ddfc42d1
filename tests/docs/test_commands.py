"""Every command in the README and on the site's pages is typed here, and ends with exit code 0.

Training is left out: `run` lists its cells (dry_run), `diagnose` plans its end points, `check` builds the tiny model.
Directories that a reader would have made are stood in for: by one tiny failing cell, and by the default grid's records.
"""

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from nangrid.cell.model.tiny import tiny_gemma
from nangrid.commands.check import main as check
from nangrid.commands.diagnose import main as diagnose
from nangrid.commands.replay import main as replay
from nangrid.commands.report import main as report
from nangrid.commands.run import main as run
from nangrid.commands.status import main as status
from nangrid.commands.why import main as why
from nangrid.diagnosis.oracle import DiagnosisProblem
from nangrid.records.grid import GridDirectory

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )?(?:python -m src\.|nangrid |make )[a-z][^#]*")


def _pages() -> dict[str, str]:
    skill = ROOT / "src" / "nangrid" / "SKILL.md"
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", skill, *sorted((ROOT / "docs").rglob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


PAGES = _pages()


def _typed(text: str) -> Iterator[str]:
    """The lines of shell blocks, what follows a prompt, and code in the text."""
    for language, block in FENCE.findall(text):
        lines = [line.removeprefix("$ ") for line in block.splitlines() if language == "bash" or line.startswith("$ ")]
        yield from (part for line in lines for part in line.split(" && "))
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)))


LINES = sorted({line.strip() for text in PAGES.values() for line in _typed(text)})
COMMANDS = sorted(
    {match.group().strip() for line in LINES if (match := COMMAND.fullmatch(line.split("  #")[0].strip()))}
)
OURS = sorted({re.sub(r"^.*?(python -m src\.|nangrid )", "", c) for c in COMMANDS if "make " not in c})
TARGETS = sorted({c.removeprefix("make ") for c in COMMANDS if c.startswith("make ")})


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny cell that diverges after a few steps, with snapshots kept from before."""
    out = tmp_path_factory.mktemp("failed")
    levels = ["model=tiny", "model.layers=2", "dtype=silent_fp16", "init=mean", "optim.lr=4", "targets.rank=8"]
    assert run([*levels, "horizon=30", "keep_every=2", "tracker=none", f"out={out}"]) == 0
    (record,) = GridDirectory.open(out).records()[0]
    assert record.snapshot is not None
    return out / "cells" / record.cell_id


@pytest.fixture
def stand_ins(failed: Path, default_grid: Path, tmp_path: Path) -> dict[str, str]:
    """What a page names -> what exists here. The first that fits is put in."""
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "a", "completion": "b"}\n')
    kept = next((failed / "kept").iterdir())
    return {
        "envs/new/bin/python,envs/old/bin/python": sys.executable,
        "/path/to/model": str(tiny_gemma(1)),
        "chats.jsonl": str(chats),
        "outputs/grid/cells/30e24def/kept/100": str(kept),
        "outputs/grid/cells/30e24def": str(failed),
        "outputs/default/cells/2769c279": str(failed),
        "outputs/default": str(default_grid),
        "outputs/peft1715": str(default_grid),
        "outputs/look": str(default_grid),
        "outputs/diagnose": str(default_grid),
        "outputs/grid": str(default_grid),
        "OUT": str(default_grid),
        "PATH": str(default_grid),
        "autopsy": str(failed),
    }


def test_the_pages_show_every_command() -> None:
    assert {line.split()[0] for line in OURS} == {"run", "why", "diagnose", "replay", "report", "check", "status"}
    assert len(OURS) > 30 and {"grid", "report", "test", "lint", "docs"} <= set(TARGETS)


@pytest.mark.parametrize("line", OURS)
def test_a_command_can_be_typed(
    line: str, stand_ins: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "none")
    name, *arguments = shlex.split(line)
    arguments = [_with_stand_in(argument, stand_ins) for argument in arguments if argument != "..."]
    if name == "run":
        assert run([*(argument for argument in arguments if argument != "--json"), "dry_run=true"]) == 0
    elif name == "why":
        assert why(arguments or [stand_ins["OUT"]]) == 0
    elif name == "replay":
        assert replay(arguments or [stand_ins["outputs/grid/cells/30e24def"]]) == 0
    elif name == "diagnose":
        _plan_only(monkeypatch)
        arguments = [argument for argument in arguments if argument != "--json"]
        assert diagnose(arguments or ["--failing", "dtype=fp16", "--reference", "dtype=bf16"]) == 0
    elif name == "check":
        assert check([*arguments, "model=tiny", "model.layers=1"]) == 0
    elif name == "report":
        assert _reported(*(arguments or [stand_ins["OUT"]])) == 0
    else:
        monkeypatch.setattr("nangrid.commands.status.QUIET_S", 0.1)
        assert status(arguments or [stand_ins["OUT"]]) == 0


def _with_stand_in(argument: str, stand_ins: dict[str, str]) -> str:
    if argument.startswith("out="):
        return argument
    for shown, here in stand_ins.items():
        if shown in argument:
            return argument.replace(shown, here)
    return argument


@cache
def _reported(*arguments: str) -> int:
    return report([*arguments, *([] if "--no-notebook" in arguments else ["--no-notebook"])])  # see test_report.py


def _plan_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan the failing end point instead of searching."""

    def planned(problem: DiagnosisProblem, *_: object) -> DiagnosisProblem:
        assert problem.plan(problem.levels(problem.all_changes), 4, 0).cell_id
        return problem

    monkeypatch.setattr("nangrid.commands.diagnose.diagnose", planned)
    monkeypatch.setattr("nangrid.commands.diagnose.print_summary", lambda *_: None)


def test_every_make_target_exists() -> None:
    for target in TARGETS:
        done = subprocess.run(["make", "-n", *target.split()], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_every_extra_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for text in PAGES.values() for extra in re.findall(r"'nangrid\[(\w+)\]'", text)}
    assert named and named <= extras.keys()


def test_every_file_that_is_named_exists() -> None:
    named = {
        path
        for text in PAGES.values()
        for path in re.findall(r"(?<![\w/])((?:bench|sweeps|notebooks|docs|conf|tests)/[\w./]+\.\w+)", text)
    }
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert missing == []
