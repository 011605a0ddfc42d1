"""The scripts of the guide, from failing to a verdict, as a user runs them: each in a process of its own."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nangrid.cell.model.tiny import tiny_gemma
from nangrid.records.grid import GridDirectory

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
TEMPLATE = """\
{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}
{{ m['content'] }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>assistant
{% endif %}"""
DRIVER = """
import sys
sys.path.insert(0, {examples!r})
from {example} import make_trainer
import nangrid
if __name__ == "__main__":
    found = nangrid.diagnose(make_trainer, {sides}, seeds=1, n_jobs=2, out="out")
    print("returned:", found.event, found.cells)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(tiny_gemma(2), folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def drive(tmp_path: Path, example: str, sides: str, model: Path, rows: list[dict[str, object]]) -> str:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = tmp_path / "mine.py"
    script.write_text(DRIVER.format(examples=str(EXAMPLES), example=example, sides=sides))
    command = [sys.executable, str(script), str(model), str(data)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_batch_of_one_that_is_standardised(model: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"the word {i} and its mate", "label": i % 2} for i in range(17)]
    failing = {"per_device_train_batch_size": 8, "dataloader_drop_last": False, "learning_rate": 3e-4}
    reference = {"per_device_train_batch_size": 6, "dataloader_drop_last": True, "learning_rate": 1e-4}
    said = drive(tmp_path, "classifier", f"failing={failing}, reference={reference}, horizon=6", model, rows)
    assert "sufficient: per_device_train_batch_size=8 dataloader_drop_last=false" in said
    assert "cure: per_device_train_batch_size=6" in said and "cure: dataloader_drop_last=true" in said
    assert "origin: aten.std.correction (classifier.py:" in said
    assert "returned: mean-over-nothing (forward invalid)" in said

    records, errors = GridDirectory.open(tmp_path / "out").records()
    assert errors == [] and all(record.error is None for record in records)
    assert {record.factors["script"] for record in records} == {"classifier.py:make_trainer"}
    assert not list(tmp_path.glob("out/cells/*/trainer/checkpoint-*")), "a cell saves no checkpoints of its own"


def test_chats_cut_before_the_assistant_speaks(model: Path, tmp_path: Path) -> None:
    def chat(words: int) -> dict[str, object]:
        asks, says = {"role": "user", "content": "please " * words}, {"role": "assistant", "content": "here you are"}
        return {"messages": [asks, says]}

    rows = [chat(40 if i % 3 == 0 else 2) for i in range(12)]
    sides = "failing={'max_length': 40, 'dtype': 'bfloat16', 'lr': 2e-4}, "
    sides += "reference={'max_length': 512, 'dtype': 'bfloat16', 'lr': 2e-5}, horizon=8"
    said = drive(tmp_path, "chat_sft", sides, model, rows)
    assert "empty-labels (forward invalid)" in said
    assert "sufficient: max_length=40" in said and "cure: max_length=512" in said and "cure: lr" not in said


@pytest.mark.parametrize("example", ["chat_sft", "classifier"])
def test_the_guide_shows_it_in_under_30_lines_of_code(example: str) -> None:
    assert f'--8<-- "docs/examples/{example}.py"' in (ROOT / "docs" / "guide" / "diagnose.md").read_text()
    script = (EXAMPLES / f"{example}.py").read_text()
    code = [line for line in script.splitlines() if line and not line.startswith(("import", "from", '"""'))]
    assert len(code) < 30
