"""`why` answers about everything a run leaves behind, on one screen, as Markdown and as JSON."""

import json
import math
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import transformers
from autopsies import make_autopsy
from bare_loop import diagnose as fail
from torch import Tensor, nn

from nangrid.commands.why import main as why
from nangrid.integrations import watch_trainer
from nangrid.records.autopsy import Trial, write_autopsy
from nangrid.records.diagnosis import ClaimRecord, DiagnosisRecord, write_diagnosis
from nangrid.records.output.answer import Answer
from nangrid.records.output.schema import json_schema

ROOT = Path(__file__).parents[2]
OVERFLOW, GRADIENT, ADAM, FINITE = "f0ffb3fd", "161fec23", "637c3ab4", "718a15bc"
"""Cells of the default grid: one per event, and one that trains."""

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def grid(default_grid: Path) -> Path:
    return default_grid


def shown(path: Path, captured: Captured, *options: str) -> str:
    assert why([str(path), *options]) == 0
    return captured.readouterr().out


def screen(path: Path, captured: Captured) -> str:
    """The words of a screen, after the checks of its size."""
    lines = shown(path, captured).splitlines()
    assert len(lines) <= 34 and all(len(line) <= 80 for line in lines if str(path) not in line)
    return " ".join(" ".join(lines).split())


def answer(path: Path, captured: Captured, *options: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(shown(path, captured, "--json", *options))
    jsonschema.validate(value, json_schema(Answer))
    return value


def test_the_grid_names_cause_and_cure_of_each_event(grid: Path, capsys: Captured) -> None:
    words = screen(grid, capsys)
    assert words.startswith("what 8 of 14 runs failed, in 3 ways.")
    assert "An activation exceeds the float16 range. 4 of 14 runs fail this way, at step 0." in words
    assert "modeling_gemma3.py:416, model.layers.7, forward pass: aten.add.Tensor (overflow) at [0, 0, 163]" in words
    alone = "but not with dtype=bf16, and not with init=mean"
    assert f"cause dtype=silent_fp16 with init=zero: a run fails this way, {alone} (proven)" in words
    assert "A gradient exceeds the float16 range. 2 of 14 runs fail this way, at step 3." in words
    code = "from_pretrained(..., dtype=torch.bfloat16)"
    assert f"change dtype=bf16: with it, all 4 failing runs stay finite for 12 steps in code {code}" in words
    assert "whether other seeds agree: each combination ran with one seed" in words
    assert "src.report" in words


@pytest.mark.parametrize(
    ("cell", "origin", "cause", "sure", "first"),
    [
        (OVERFLOW, "aten.add.Tensor (overflow)", "dtype=fp16", "where: proven (with zeros", "dtype=bf16"),
        (
            GRADIENT,
            "aten._to_copy.default (overflow)",
            "dtype=silent_fp16 with init=zero",
            "where: proven (this operation fails the step by itself",
            "init=mean",
        ),
        (ADAM, "adam.py:546", "dtype=silent_fp16 with optim=adamw_torch", "why: proven (tested: eps=", "dtype=bf16"),
    ],
)
def test_a_cell_is_told_with_what_its_grid_proves(
    cell: str, origin: str, cause: str, sure: str, first: str, grid: Path, capsys: Captured
) -> None:
    words = screen(grid / "cells" / cell, capsys)  # the first digits of a cell_id, as tables show them
    assert origin in words and f"cause {cause}: " in words and sure in words and f"change first {first}: " in words
    assert "ruled out a random glitch (the replay repeated the step to the last bit)" in words


def test_a_healthy_cell_is_said_to_be(grid: Path, capsys: Captured) -> None:
    words = screen(grid / "cells" / FINITE, capsys)
    assert words.startswith("what Nothing went wrong: the run stayed finite for 12 steps")
    assert answer(grid / "cells" / FINITE, capsys)["outcome"] == "healthy"


def test_a_diagnosis_is_told_by_its_claims(grid: Path, tmp_path: Path, capsys: Captured) -> None:
    copy = tmp_path / "diagnosed"
    copy.mkdir()
    (copy / "cells").mkdir()
    (copy / "grid.json").write_bytes((grid / "grid.json").read_bytes())
    cells = {path.name[:8]: path for path in (grid / "cells").iterdir()}
    for name in (ADAM, FINITE):
        target = copy / "cells" / cells[name].name
        target.mkdir()
        for file in cells[name].iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    failing, reference = cells[ADAM].name, cells[FINITE].name
    lines = [
        "adam-eps-underflow at step 0:",
        "  tokens: 'private words' (id 2,",
        "    position 0)",
        "  try: dtype=bf16",
    ]
    claims = [
        ClaimRecord("cause", ["dtype=silent_fp16", "optim=adamw_torch"], "proven", 3, 3, [failing]),
        ClaimRecord("cure", ["dtype=bf16"], "proven", 3, 3, [reference]),
    ]
    write_diagnosis(copy, DiagnosisRecord(failing, reference, lines, claims))
    words = screen(copy, capsys)
    assert "A search compared a failing run with one that trains." in words
    assert "cause dtype=silent_fp16 with optim=adamw_torch: 3 of 3 seeds fail (proven)" in words
    value = answer(next((copy / "diagnoses").iterdir()), capsys)
    assert (value["about"], value["events"][0]["cures"][0]["levels"]) == ("diagnosis", ["dtype=bf16"])
    assert value["diagnosis"] == [lines[0], lines[3]], "no text of the data"
    unproven = [replace(claim, grade="undecided", count=1) for claim in claims]
    write_diagnosis(copy, DiagnosisRecord(failing, reference, lines, unproven))
    assert "and dtype=bf16 may cure it, which is not proven." in answer(copy, capsys)["summary"]


class Log(nn.Module):
    """Its loss is the logarithm of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Any:
        return {"loss": torch.log(self.scale(x) * 0).sum()}


def test_a_bare_loop_is_told_with_its_experiments(tmp_path: Path, capsys: Captured) -> None:
    fail(Log(), [{"x": torch.ones(1, 1)}], tmp_path / "autopsy", lambda out: out["loss"])
    words = screen(tmp_path / "autopsy", capsys)
    assert words.startswith("what The loss became non-finite in step 0.")
    assert "why log-of-zero: " in words
    assert "where: proven (with zeros in place of its non-finite numbers, the loss is finite)" in words
    assert "why: proven (tested: " in words and "change first at test_why.py:" in words
    value = answer(tmp_path / "autopsy", capsys)
    script = Path(value["findings"][0]["operand_script"])
    assert script == tmp_path / "autopsy" / "operation.py" and script.exists()


def test_a_trainer_is_found_by_its_output_directory(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"max_steps": 3, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    arguments = transformers.TrainingArguments(output_dir=str(out), **options)
    trainer = transformers.Trainer(model=Log(), args=arguments, train_dataset=[{"x": torch.ones(1)}] * 8)
    watch_trainer(trainer, out_dir=out / "autopsy")
    trainer.train()
    capsys.readouterr()
    assert "why log-of-zero: " in screen(out, capsys)


@pytest.mark.parametrize(
    ("numbers", "outcome", "said"),
    [
        ([2.0, math.nan], "failed", "The log of this Trainer shows a non-finite loss at step 20, and not before."),
        ([2.0, 1.5], "healthy", "The log of this Trainer shows no NaN and no infinity up to step 20."),
    ],
)
def test_a_trainer_without_a_watch_is_told_by_its_log(
    numbers: list[float], outcome: str, said: str, tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "checkpoint-20"
    folder.mkdir()
    history = [{"step": 10 * (row + 1), "loss": loss, "grad_norm": 1.0} for row, loss in enumerate(numbers)]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 20, "log_history": history}))
    assert said in screen(tmp_path, capsys)
    value = answer(tmp_path, capsys)
    assert value["outcome"] == outcome and "logging_nan_inf_filter" in " ".join(value["unchecked"])


def test_markdown_tells_each_event_with_its_own_replay(grid: Path, capsys: Captured) -> None:
    page = shown(grid, capsys, "--markdown")
    assert page.startswith("### nangrid: why the training failed\n")
    _, activation, adam, gradient = page.split("\n**A")  # the titles of the events all begin with this letter
    for event, where in ((activation, "gemma3.py:416"), (gradient, "gemma3.py:145"), (adam, "adam.py:546")):
        assert event.count("| where |") == 1 and f"{where}, " in event
    assert "- cure: `dtype=bf16`: tried on 1 of the 2 failing runs; it stays finite" in gradient
    assert "  - in a script: `from_pretrained(..., dtype=torch.bfloat16)`" in gradient


def test_markdown_has_no_secret_and_no_text_of_the_data(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a_planted_secret")
    explanation = "Seen by @someone under hf_a_planted_secret, <b>bold</b> | [link](http://x)."
    autopsy = make_autopsy(explanation=explanation, cures=[Trial("in float32", True)], ablated=True, alone=True)
    write_autopsy(tmp_path, replace(autopsy, tokens=[replace(autopsy.tokens[0], text="private words")]))
    page = shown(tmp_path, capsys, "--markdown")
    assert "private words" not in page and "id 2 (position 0)" in page
    assert "hf_a_planted_secret" not in page and "HF\\_TOKEN" in page
    assert "@someone" not in page and "<b>" not in page and "\\[link\\]" in page
    assert f"`{tmp_path / 'operation.py'}`" in page and f"| torch | {version('torch')} |" in page
    assert "private words" in shown(tmp_path, capsys, "--markdown", "--with-text")
    assert "private words" not in shown(tmp_path, capsys, "--json")


def test_what_is_none_of_these_is_refused_in_a_sentence(tmp_path: Path, capsys: Captured) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        assert why([str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line
