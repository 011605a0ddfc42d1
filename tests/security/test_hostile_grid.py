"""A stranger's grid under every command: nothing is executed, read outside of it, or leaked, and each cell is named."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from attacks import MARKER, RECORDS, REQUESTS, SECRET, SHOWN, Attack, evil_checkpoint

from nangrid.commands.diagnose import main as diagnose
from nangrid.commands.replay import main as replay
from nangrid.commands.report import main as report
from nangrid.commands.run import main as run
from nangrid.commands.status import main as status
from nangrid.commands.why import main as why

MakeGrid = Callable[[dict[str, Attack]], dict[str, Path]]
Captured = pytest.CaptureFixture[str]

ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


def harmless(shown: str, outside: Path) -> str:
    """The text, after the checks that hold for whatever a command prints or writes."""
    assert not (outside / "canary").exists()
    assert not ACTING.search(shown), ACTING.search(shown)
    for planted in (SECRET, SECRET[::-1], MARKER, "Traceback"):
        assert planted not in shown
    return shown


def one_sentence(captured: Captured, outside: Path) -> str:
    shown = captured.readouterr()
    harmless(shown.out + shown.err, outside)
    assert len(shown.err.splitlines()) == 1, shown.err
    return shown.err


@pytest.mark.parametrize("name", REQUESTS)
def test_no_command_acts_on_a_strangers_request(
    name: str, hostile: MakeGrid, outside: Path, tmp_path: Path, capsys: Captured
) -> None:
    cell = hostile({name: REQUESTS[name]})[name]
    started = [f"start_from={cell}", "tracker=none", f"out={tmp_path / 'mine'}"]
    commands = [
        lambda: replay([str(cell)]),
        lambda: run(["-m", *started, "dtype=bf16,fp32"]),
        lambda: diagnose([*started, "--reference", "dtype=fp32"]),
    ]
    for command in commands:
        assert command() == 2
        one_sentence(capsys, outside)
    for shows in (status, why):
        assert shows([str(tmp_path / "grid")]) == 0
        harmless(capsys.readouterr().out, outside)
    assert not (tmp_path / "mine").exists()


def test_records_that_cannot_be_read_are_named_and_the_others_count(
    hostile: MakeGrid, outside: Path, tmp_path: Path, capsys: Captured
) -> None:
    cells = hostile(RECORDS)
    assert status([str(tmp_path / "grid")]) == 0
    shown = harmless(capsys.readouterr().out, outside)
    assert f"{len(cells) + 4} cells: 2 finite, 2 non-finite, {len(cells)} damaged" in shown
    for cell in cells.values():
        assert f"skipped: {cell / 'result.json'} cannot be read (" in shown

    assert report([str(tmp_path / "grid"), "--no-notebook"]) == 0
    shown = harmless(capsys.readouterr().out, outside)
    assert "sufficient: dtype=fp16" in shown
    for cell in cells.values():
        assert f"skipped: {cell / 'result.json'} cannot be read (" in shown
        for command in (replay, why):
            assert command([str(cell)]) == 2
            one_sentence(capsys, outside)
    assert why([str(tmp_path / "grid")]) == 0
    assert "dtype=fp16" in harmless(capsys.readouterr().out, outside)


def test_what_a_record_says_is_shown_and_not_run(
    hostile: MakeGrid, outside: Path, tmp_path: Path, capsys: Captured
) -> None:
    cells = hostile(SHOWN)
    grid = tmp_path / "grid"
    assert status([str(grid)]) == 0
    harmless(capsys.readouterr().out, outside)
    assert report([str(grid), "--no-notebook"]) == 0
    shown = harmless(capsys.readouterr().out, outside)
    assert r"\x1b" in shown and "skipped: " in shown
    page = harmless((grid / "report.html").read_text(), outside)
    assert "<script" not in page and "<img" not in page and "&lt;script" in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    for cell in cells.values():
        replay([str(cell)])
        harmless(capsys.readouterr().err, outside)
    for path in (grid, *cells.values()):
        for form in ([], ["--markdown"], ["--json", "--with-text"]):
            why([str(path), *form])
            shown = capsys.readouterr()
            outside_of_code = re.sub("`[^`]*`", "", harmless(shown.out + shown.err, outside))
            assert "<script" not in outside_of_code or "--markdown" not in form
    assert not list(outside.glob("lock*"))


def test_a_command_to_copy_holds_nothing_that_a_record_made_up(
    hostile: MakeGrid, outside: Path, tmp_path: Path
) -> None:
    hostile({name: SHOWN[name] for name in ("overrides_compose_a_stranger", "texts_attack_the_terminal")})
    assert report([str(tmp_path / "grid"), "--no-notebook"]) == 0
    page = (tmp_path / "grid" / "report.html").read_text()
    commands = re.findall(r"<code>(python -m src\.run[^<]*)</code>", page)
    assert len(commands) == 4 and not any("searchpath" in command or "touch" in command for command in commands)
    assert page.count("<code>none, because the record has ") == 2


def test_links_out_of_the_grid_are_neither_followed_nor_filled(
    hostile: MakeGrid, outside: Path, tmp_path: Path, capsys: Captured
) -> None:
    hostile({})
    cells = tmp_path / "grid" / "cells"
    (cells / "0123456789ab").symlink_to(outside)
    (cells / "a\x1b[2Jb").mkdir()
    (cells / "..  ").mkdir()
    assert status([str(tmp_path / "grid")]) == 0
    shown = harmless(capsys.readouterr().out, outside)
    assert "0123456789ab cannot be read (it is a link to another directory)" in shown
    assert shown.count("no cell has such a name") == 2 and "4 cells: 2 finite, 2 non-finite" in shown
    assert replay([str(cells / "0123456789ab")]) == 2
    one_sentence(capsys, outside)


def test_a_grid_whose_cells_are_elsewhere_is_empty(tmp_path: Path, outside: Path, capsys: Captured) -> None:
    grid = tmp_path / "grid"
    grid.mkdir()
    (grid / "grid.json").write_text('{"schema": 1, "grid_id": "x", "created": ""}')
    (grid / "cells").symlink_to(outside)
    assert report([str(grid), "--no-notebook"]) == 2
    one_sentence(capsys, outside)
    assert run(["model=tiny", "tracker=none", f"out={grid}"]) == 2
    assert "link" in one_sentence(capsys, outside)
    assert [path.name for path in outside.iterdir()] == ["secret.txt"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 1}', "[" * 50_000, '{"schema": 1e400}', "\0" * 99])
def test_a_damaged_grid_record_ends_in_a_sentence(
    content: str, hostile: MakeGrid, outside: Path, tmp_path: Path, capsys: Captured
) -> None:
    hostile({})
    (tmp_path / "grid" / "grid.json").write_text(content)
    for command in (status, report, why):
        assert command([str(tmp_path / "grid")]) == 2
        assert "grid.json cannot be read (" in one_sentence(capsys, outside)


def test_a_checkpoint_that_holds_code_is_refused(tmp_path: Path, outside: Path) -> None:
    from nangrid.integrations.torch_file import load_pickle
    from nangrid.records.errors import InputError

    evil_checkpoint(tmp_path / "checkpoint-3", outside)
    for path in sorted((tmp_path / "checkpoint-3").glob("*.pt*")):
        with pytest.raises(InputError, match="could run code") as caught:
            load_pickle(path)
        harmless(str(caught.value), outside)


def test_a_compressed_checkpoint_is_refused_before_it_expands(tmp_path: Path) -> None:
    import zipfile

    import torch

    from nangrid.integrations.torch_file import load_pickle
    from nangrid.records.errors import InputError

    torch.save({"a": torch.zeros(2)}, tmp_path / "sound.pt")
    assert load_pickle(tmp_path / "sound.pt")["a"].tolist() == [0, 0]
    with (
        zipfile.ZipFile(tmp_path / "sound.pt") as sound,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for member in sound.infolist():
            bomb.writestr(member.filename, sound.read(member))
    torch.save([1], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name, reason in (("bomb.pt", "compressed"), ("old.pt", "no archive"), ("missing.pt", "No such file")):
        with pytest.raises(InputError, match=reason):
            load_pickle(tmp_path / name)


def test_the_notebook_imports_nothing_from_the_grid(hostile: MakeGrid, outside: Path, tmp_path: Path) -> None:
    hostile({"modules_in_the_grid": SHOWN["modules_in_the_grid"]})
    command = [sys.executable, "-P", "-c", "from nangrid.commands import main; raise SystemExit(main())", "report", "."]
    done = subprocess.run(command, cwd=tmp_path / "grid", capture_output=True, text=True)
    harmless(done.stdout + done.stderr, outside)
    assert done.returncode == 0 and "notebook: " in done.stdout, done.stdout + done.stderr
    notebook = harmless((tmp_path / "grid" / "onset_report.html").read_text(), outside)
    assert "Content-Security-Policy" in notebook
