"""Bad input, and the sentence that answers it."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import nangrid.commands
from nangrid.cell.config import CONF_DIR, Config
from nangrid.commands.help import WIDTH
from nangrid.commands.run import main

HYPOTHESES = "hypotheses is not a group of a run: python -m src.report GRID_DIR --hypotheses DIRECTORY tests them."
BAD = {
    "hypotheses=S1": HYPOTHESES,
    "+hypotheses=S1": HYPOTHESES,
    "dtype=bf61": "dtype=bf61 is not a level: choose one of amp_bf16, amp_fp16, bf16, fp16, fp32, "
    "silent_fp16 (did you mean dtype=bf16?).",
    "horzon=3": "horzon is not a key: did you mean horizon?",
    "dtyp=bf16": "dtyp is not a key: did you mean dtype?",
    "optim.lrr=3": "optim.lrr is not a key: did you mean optim.lr?",
    "+optim.epsilon=1": "optim.epsilon is not a key that a cell reads: did you mean optim.eps?",
    "+experimnt=smoke": "experimnt is not a key that a cell reads: did you mean experiment?",
    "horizon=abc": "horizon=abc does not fit: horizon takes a whole number.",
    "horizon=-1": "horizon=-1 is out of range: give a number of at least 1.",
    "seed=1.5": "seed=1.5 does not fit: seed takes a whole number.",
    "dry_run=maybe": "dry_run=maybe does not fit: dry_run takes true or false.",
    "targets.modules=q": "The value of targets.modules does not fit: targets.modules takes a list such as "
    "[q_proj,v_proj].",
    "optim.lr=nan": "optim.lr=nan is out of range: give a number of at least 0.",
    "threads=0": "threads=0 is out of range: give a number of at least 1.",
    "processes=0": "processes=0 is out of range: give a number of at least 1.",
    "processes=two": "processes=two does not fit: processes takes a whole number.",
    "processes=65": "processes=65 is out of range: give a number of at most 64.",
    "dtype=null": "A group takes the name of a level, and null is not one: type group=level, see --help for "
    "the levels.",
    "dtype.storage=fp8": "dtype.storage=fp8 is not a level: choose one of bf16, fp16, fp32.",
    "horizon=[1": "horizon=[1 cannot be read: type key=value, with quotes around a value that has special characters.",
    "horizon": "horizon cannot be read: type key=value, with quotes around a value that has special characters.",
    "seed=0,1": "seed=0,1 gives several cells: add -m, as in python -m src.run -m seed=0,1.",
    "+experiment=smok": "+experiment=smok is not a level: choose one of covering, default, full, one_factor, peft1715, "
    "smoke (did you mean +experiment=smoke?).",
    "experiment=smoke": "experiment is not a group of every cell: type +experiment=... with a plus.",
    "+horizon=3": "+horizon=... adds a key that exists already: type horizon=... without the plus.",
    "~optim.betas": "~optim.betas deletes a key that does not exist: leave it out.",
    "model=hub": "model=hub needs a model: add model.id=ORGANISATION/NAME or model.id=/path/to/model.",
    "model.id=${nothing}": "${nothing} refers to a key that does not exist: see --cfg job for all keys.",
    "hydra.launcher.n_job=2": "hydra.launcher.n_job is not a key: did you mean hydra.launcher.n_jobs?",
    "--dry-run": "--dry-run is not an option: see --help. Config keys take no dashes (key=value).",
}


@pytest.mark.parametrize("override", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_created(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([override]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", BAD[override] + "\n")
    assert list(tmp_path.iterdir()) == []


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("nangrid.commands.run.launch", broken)
    with pytest.raises(ZeroDivisionError):
        main([])


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from nangrid.commands.run import main; main(['--help']); "
        "print(sorted({'torch', 'transformers', 'pandas', 'datasets', 'wandb'} & sys.modules.keys()))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"
    assert "paged_adamw_8bit" in shown and "python -m src.run -m dtype=bf16,fp32 init=zero,mean" in shown


def test_help_names_every_top_level_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    keys = set(re.findall(r"^  (\w+)=", shown, re.M))
    assert keys == {key for key, kind in get_type_hints(Config).items() if not dataclasses.is_dataclass(kind)}
    for key, value in re.findall(r"^  (\w+)=(\d+|unfinished) ", shown, re.M):
        assert str(getattr(Config, key)) == value


def test_help_names_every_level_of_a_run_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.split("plus):\n")[1].split("\n\n")[0]
    shown: dict[str, set[str]] = {}
    for group, levels in re.findall(r"^  (\w+) +((?:.*,\n +)*.*)$", listed, re.M):
        shown[group] = set(levels.replace(",", " ").split())
    folders = {path for path in CONF_DIR.iterdir() if path.is_dir()} - {CONF_DIR / "hydra", CONF_DIR / "hypotheses"}
    assert shown == {folder.name: {level.stem for level in folder.glob("*.yaml")} for folder in folders}


def test_help_fits_a_terminal_of_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= WIDTH == 80


def test_an_unknown_command_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nangrid", "rum", "seed=1"])
    assert nangrid.commands.main() == 2
    assert capsys.readouterr().err == "nangrid rum is not a command: type nangrid run, or nangrid --help.\n"


def test_the_entry_point_hands_the_arguments_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["nangrid", "run", "horizon=abc"])
    assert nangrid.commands.main() == 2
    assert "horizon takes a whole number" in capsys.readouterr().err


def test_a_malformed_jsonl_line_is_named_before_anything_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n{"text": \n')
    assert main(["model=tiny", "data=jsonl", f"data.path={path}", f"out={tmp_path / 'out'}"]) == 2
    assert "line 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
