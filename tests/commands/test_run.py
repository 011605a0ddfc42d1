"""What a person types wrong, and what is said then."""

import subprocess
import sys
from pathlib import Path

import pytest

import nangrid.commands
from nangrid.cell.config import CONF_DIR
from nangrid.commands.help import groups
from nangrid.commands.run import main

BAD = {
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
    "dtype=null": "A group takes the name of a level and null is none: type group=level, see --help for the levels.",
    "dtype.storage=fp8": "dtype.storage=fp8 is not a level: choose one of bf16, fp16, fp32.",
    "horizon=[1": "horizon=[1 cannot be read: type key=value, with quotes around a value of odd characters.",
    "horizon": "horizon cannot be read: type key=value, with quotes around a value of odd characters.",
    "seed=0,1": "seed=0,1 asks for several cells: add -m, as in python -m src.run -m seed=0,1.",
    "+experiment=smok": "+experiment=smok is not a level: choose one of covering, default, full, one_factor, peft1715, "
    "smoke (did you mean +experiment=smoke?).",
    "experiment=smoke": "experiment is not a group of every cell: type +experiment=... with a plus.",
    "+horizon=3": "+horizon=... adds a key that exists already: type horizon=... without the plus.",
    "~optim.betas": "~optim.betas deletes a key that does not exist: leave it out.",
    "model=hub": "model=hub needs a model: add model.id=ORGANISATION/NAME or model.id=/path/to/model.",
    "model.id=${nothing}": "${nothing} refers to a key that does not exist: see --cfg job for those there are.",
    "hydra.launcher.n_job=2": "hydra.launcher.n_job is not a key: did you mean hydra.launcher.n_jobs?",
    "--dry-run": "--dry-run is not an option: see --help; config keys take no dashes (key=value).",
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


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("nangrid.commands.run.launch", broken)
    with pytest.raises(ZeroDivisionError):
        main([])


def test_help_is_quick_since_nothing_heavy_is_imported() -> None:
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
    for key in ("seed", "horizon", "out", "resume", "dry_run", "threads"):
        assert f"\n  {key}=" in shown
    assert all(level.parent.name in groups() for level in CONF_DIR.glob("[!h]*/*.yaml"))


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


def test_a_broken_line_of_jsonl_is_told_with_its_number_before_anything_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n{"text": \n')
    assert main(["model=tiny", "data=jsonl", f"data.path={path}", f"out={tmp_path / 'out'}"]) == 2
    assert "line 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
