"""No secret of the environment reaches a record, a terminal or a process, whatever a config interpolates."""

import os
import re
import subprocess
import threading
from pathlib import Path

import pytest
from attacks import SECRET, TERMINAL

from nangrid.commands.run import main as run
from nangrid.diagnosis.script import _check
from nangrid.records.errors import InputError
from nangrid.records.safety.command import typed
from nangrid.records.safety.names import is_override
from nangrid.records.safety.secret import redacted
from nangrid.records.safety.text import printable
from nangrid.reporting.notebook import begin

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "override",
    [
        "data.split=${oc.env:WANDB_API_KEY}",
        "tracker.project=mine-${oc.env:WANDB_API_KEY}",
        "targets.modules=[${oc.env:WANDB_API_KEY}]",
        "model=hub model.id=${oc.env:HF_TOKEN}",
        "optim.lr=${oc.env:WANDB_API_KEY}",
        "seed=${oc.env:WANDB_API_KEY}",
        "dtype.storage=${oc.env:WANDB_API_KEY}",
        f"tracker.entity={SECRET}",
    ],
)
def test_a_config_that_holds_a_secret_is_refused_without_showing_it(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["model=tiny", *override.split(), f"out={tmp_path / 'mine'}"]) == 2
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1
    assert SECRET not in shown.out + shown.err and SECRET[::-1] not in shown.out + shown.err
    assert not (tmp_path / "mine").exists()


def test_a_level_of_a_script_is_no_secret_either() -> None:
    with pytest.raises(InputError, match="key holds the value of WANDB_API_KEY"):
        _check({"key": SECRET, "lr": 1}, {"key": SECRET, "lr": 2}, {})


def test_the_notebooks_process_inherits_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: started.append(options["env"]))
    begin(tmp_path / "n.py", tmp_path, {})
    assert "PATH" in started[0] and not {"WANDB_API_KEY", "HF_TOKEN"} & started[0].keys()
    assert SECRET not in str(started)


def test_control_characters_are_spelled_out_and_secrets_named() -> None:
    shown = printable(f"a\tb\n{TERMINAL} {SECRET} \udcff é 漢")
    assert shown == "a\tb\n\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202egnp.exe <WANDB_API_KEY> \\udcff é 漢"


def test_a_command_to_copy_is_one_word_per_argument() -> None:
    hostile = ["a b", "$(touch x)", "`id`", "; rm -r", "'", '"', "\n", "$HOME", "dtype=bf16", ""]
    done = subprocess.run(["bash", "-c", typed("printf '%s\\0'", *hostile)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == hostile


@pytest.mark.parametrize(
    ("override", "sets_a_level"),
    [
        ("dtype=bf16", True), ("optim.lr=1e-4", True), ("+experiment=default", True), ("checkpointing='off'", True),
        ("targets.modules=[q_proj,v_proj]", True), ("data.path=/my data/a.jsonl", True), ("seed=3", True),
        ("dtype=../../evil", False), ("dtype=/etc/evil", False), ("hydra.searchpath=[/x]", False), ("~dtype", False),
        ("+x@hydra.callbacks=y", False), ("dtype@a=b", False), ("++dtype=bf16", False), ("+experiment=../x", False),
        ("data.path=${oc.env:HOME}", False), ("a", False), ("dtype=a\nb", False),
        ("tracker.entity=me", False), ("hydra/launcher=basic", False), ("", False), ("dtype=bf16,fp32", False),
    ],
)  # fmt: skip
def test_an_override_sets_a_level_and_nothing_else(override: str, sets_a_level: bool) -> None:
    assert is_override(override) is sets_a_level


def test_only_one_place_prints() -> None:
    """Whatever else prints would show a record's control characters."""
    command = ["git", "grep", "-nP", r"(?<![.\w])(print|Console)\(", "--", "src"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    allowed = (
        "src/nangrid/records/safety/text.py",
        "src/nangrid/reporting/console.py",
        "src/nangrid/watch/autopsy/experiments/operation_file.py",  # the script that it writes prints
        "src/nangrid/cell/interpreter.py",  # what another Python prints, as JSON, is read and not shown
    )
    assert [line for line in done.stdout.splitlines() if not line.startswith(allowed)] == []


def test_nothing_in_the_code_evaluates_what_it_reads() -> None:
    """SECURITY.md lists and justifies the places that come close."""
    calls = r"(eval|exec|os\.system|os\.popen|yaml\.load|yaml\.unsafe_load|pickle\.loads?)\("
    options = "shell=True|weights_only=False|trust_remote_code=True"
    command = ["git", "grep", "-nP", rf"(?<![.\w]){calls}|{options}", "--", "src"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    body = "src/nangrid/watch/body.py"  # runs the body of the user's own loop again, from source that is loaded already
    assert [line for line in done.stdout.splitlines() if not line.startswith(body)] == []


LOADS = (
    r"torch\.load\(|pickle\.(load|Unpickler)|result_pickle|yaml\.\w*load|OmegaConf\.load\(|exec\(|subprocess\.\w+\("
    r"|(import|exec)_module\(|from_pretrained\(|load_(dataset|file|peft_weights)\(|render_jinja_template\(|get_template\("
    r"|get_context\(|hydra\.main\(|initialize_config_dir\("
)


def test_every_place_that_loads_or_starts_something_is_justified() -> None:
    command = ["git", "grep", "-lP", rf'^[^#"]*(?<!def )\b({LOADS})', "--", "src"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    places = re.findall(r"^\| ([^|]+) \|", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    listed = set(re.findall(r"`([\w/]+\.py)`", " ".join(places)))
    assert {file.removeprefix("src/nangrid/") for file in files} == listed


def test_text_is_redacted_while_another_thread_changes_the_environment() -> None:
    """As the launcher does with PYTHONSAFEPATH while rich's thread draws the bars."""
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            os.environ["PYTHONSAFEPATH"] = "nangrid"
            del os.environ["PYTHONSAFEPATH"]

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert all(redacted("no secret") == "no secret" for _ in range(3000))
    finally:
        ended.set()
        thread.join()
