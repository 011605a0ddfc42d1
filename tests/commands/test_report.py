"""The report as a reader meets it: the page, the terminal, the notebook, and grids that allow no verdict."""

import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nangrid.commands.report import main as report
from nangrid.records.autopsy import Autopsy, OutputRecord, Suggestion, TensorRecord, TokenRecord, write_autopsy
from nangrid.records.cell import CellError, CellRecord, write_record
from nangrid.records.grid import GridDirectory, read_cell_record
from nangrid.records.history import write_history
from nangrid.records.output.schemas import path_of
from nangrid.reporting.answer.of_grid import of_grid
from nangrid.reporting.finished import print_grid

MakeRecord = Callable[..., CellRecord]
MakeGrid = Callable[..., Path]

HOSTILE = "<script>alert(1)</script>&\"'"


def autopsy(text: str = "<bos>") -> Autopsy:
    operand = TensorRecord("self", [2, 64, 640], "float16", 5.4e4, 0, 0)
    return Autopsy(
        step=0, clock="loss", phase="forward", kind="overflow", op="aten.add.Tensor", module="model.layers.7",
        source="modeling_gemma3.py:416", node="", micro_batch=0, dtype="float16", dtype_max=65504.0, inputs=[operand],
        output=OutputRecord([2, 64, 640], "float16", 0, 2, [0, 0, 1]), path=["aten.add.Tensor"],
        tokens=[TokenRecord(0, 0, 2, text, False)], parameters=[], mechanism="fp16-activation-overflow",
        explanation="An activation passed 65504.", evidence=[f"seen at {text}"],
        suggestions=[Suggestion("dtype=bf16", "dtype=bf16")], reproduced=True, untrained=True,
    )  # fmt: skip


@pytest.fixture
def make_grid(make_record: MakeRecord, tmp_path: Path) -> MakeGrid:
    """Cells of dtype x init x seed on disk; fp16 fails at step 0."""

    def make(
        levels: dict[str, tuple[str, ...]] | None = None, seeds: int = 1, text: str = "<bos>", **changes: Any
    ) -> Path:
        grid = GridDirectory.open(tmp_path / "grid")
        levels = levels or {"dtype": ("bf16", "fp16"), "init": ("zero", "mean")}
        for number, (*chosen, seed) in enumerate(product(*levels.values(), range(seeds))):
            factors = dict(zip(levels, chosen, strict=True)) | {"seed": seed}
            rung = {"loss": 0} if factors.get("dtype") == "fp16" else None
            fields = {"cell_id": f"{number:012x}", "factors": factors, "overrides": [f"seed={seed}"]} | changes
            record = make_record(rung, **fields, autopsy="autopsy.json" if rung else None)
            directory = grid.cell(record.cell_id)
            directory.mkdir(parents=True)
            norm = float("inf") if rung else 40.0
            rows = [{"step": s, "loss": 4.0 - s / 10, "grad_norm": norm} for s in range(record.steps_done)]
            write_history(directory, rows)
            if rung:
                write_autopsy(directory, autopsy(text))
            write_record(directory, record)
        return grid.path

    return make


class Reader(HTMLParser):
    """What a browser would load or run, and what it would show."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.scripts = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = [str(value) for key, value in attrs if key in ("src", "href") and not str(value).startswith("#")]
        (self.links if tag == "a" else self.loads).extend(named)

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.tags[-1:] == ["script"]:
            self.scripts += data


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text())
    return reader


def test_the_page_says_it_without_a_network(make_grid: MakeGrid, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_grid(seeds=3)
    assert report([str(path), "--no-notebook"]) == 0
    page = read(path / "report.html")
    assert page.loads == [] and page.tags.count("svg") == 4, "survival, effects, traces, one autopsy"
    assert len(page.links) == 18 and all((path / link).exists() for link in page.links), "12 results, 6 autopsies"
    text = " ".join(page.text)
    assert "fp16-activation-overflow (forward overflow): 6 of 12 cells" in text
    assert "sufficient: dtype=fp16 (3 of 3 seeds" in text and "cure: dtype=bf16" in text
    assert "init has no effect: the histories of all 6 matched pairs of cells are equal to the last bit." in text
    assert "python -m src.run seed=2 horizon=16 out=outputs/again-" in text
    assert "sufficient: dtype=fp16 (3 of 3 seeds" in capsys.readouterr().out
    folded = (path / "report.html").read_text().split('<h2 id="statistics">')[1].split("</details>")[0]
    assert all(f"<h3>{title}</h3>" in folded for title in ("Effects", "Survival"))
    for head in re.findall(r"<thead>.*?</thead>", folded, re.DOTALL):
        columns = re.findall(r"<th>(.*?)</th>", head)
        assert len(set(columns)) == len(columns), "no two columns of a table have the same head"


def test_the_page_begins_with_the_answer_and_links_to_the_runs(make_grid: MakeGrid) -> None:
    path = make_grid({"dtype": ("bf16", "fp16", "fp32", "amp_bf16", "amp_fp16"), "init": ("zero", "mean")})
    assert report([str(path), "--no-notebook"]) == 0
    html = (path / "report.html").read_text()
    said = "An activation exceeds the float16 range (2 runs): dtype=fp16 causes it, and dtype="
    assert said in html and html.index(said) < html.index('class="card"') < html.index('id="map"')
    card = html[html.index('class="card"') : html.index("</article>")]
    shown, folded = card.split("<dt>Cure</dt>")[1].split("<details>", 1)
    assert shown.count("both failing runs stay finite for 16 steps") == 3
    assert "In a script: <code>TrainingArguments(bf16=True)</code>" in shown.replace('<span class="dim">', "")
    assert "<summary>1 more, larger or less helpful</summary>" in folded
    links = set(re.findall(r'href="#([\w-]+)"', html))
    assert {link for link in links if link.startswith("run-")} and all(f'id="{link}"' in html for link in links)


def test_the_end_of_a_grid_reads_each_record_once(make_grid: MakeGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = GridDirectory.at(make_grid())
    records, _ = grid.records()
    read: Counter[Path] = Counter()

    def counted(directory: Path) -> CellRecord | None:
        read[directory] += 1
        return read_cell_record(directory)

    monkeypatch.setattr("nangrid.records.grid.read_cell_record", counted)
    answer = of_grid(grid, judged=print_grid(grid, records), with_text=False)
    assert len(answer.events) == 1 and read == dict.fromkeys(map(grid.cell, (r.cell_id for r in records)), 1)


def test_json_fits_its_schema(make_grid: MakeGrid, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_grid(seeds=2)
    assert report([str(path), "--no-notebook", "--json", "--reference", "dtype=bf16", "init=mean"]) == 0
    shown = capsys.readouterr()
    value = json.loads(shown.out)
    jsonschema.validate(value, json.loads(path_of("report").read_text()))
    assert value["notebook"] is None and Path(value["page"]).exists() and len(value["cells"]) == 8
    assert value["answer"]["events"][0]["cures"][0]["levels"] == ["dtype=bf16"]
    assert "sufficient: dtype=fp16" in shown.err


def test_text_from_the_data_is_shown_and_never_run(make_grid: MakeGrid) -> None:
    levels = {"dtype": ("bf16", "fp16"), "data.path": (HOSTILE, "b")}
    path = make_grid(levels, text=HOSTILE, ledger={"storage": HOSTILE})
    assert report([str(path), "--no-notebook"]) == 0
    page = read(path / "report.html")
    assert "script" not in page.tags and "alert(1)" not in "".join(page.tags)
    assert "".join(page.text).count(HOSTILE) > 3


def test_the_notebook_runs_no_text_from_the_data_either(make_grid: MakeGrid) -> None:
    path = make_grid({"dtype": ("bf16", "fp16"), "data.path": (HOSTILE, "b")}, text=HOSTILE)
    assert report([str(path)]) == 0
    page = read(path / "onset_report.html")
    assert "alert(1)" not in page.scripts


def test_the_executed_notebook_lies_beside_it(make_grid: MakeGrid) -> None:
    path = make_grid(seeds=2)
    assert report([str(path)]) == 0
    notebook = json.loads((path / "onset_report.ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert any("sufficient: dtype=fp16 (2 of 2 seeds" in str(output.get("text", "")) for output in outputs)
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == 3
    assert not re.search(r'src="http', (path / "onset_report.html").read_text())


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ({"dtype": ("fp16",)}, "A single run cannot be compared"),
        ({"dtype": ("bf16",)}, "A single run cannot be compared"),
        ({"dtype": ("fp16",), "init": ("zero", "mean")}, "No combination trains with every seed"),
        ({"dtype": ("bf16",), "init": ("zero", "mean")}, "No run went non-finite"),
    ],
)
def test_a_grid_that_allows_no_verdict_gets_a_sentence(
    levels: dict[str, tuple[str, ...]], said: str, make_grid: MakeGrid, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_grid(levels)
    assert report([str(path), "--no-notebook"]) == 0
    text = " ".join(read(path / "report.html").text)
    out = capsys.readouterr().out
    assert said in out and said in text
    assert "sufficient:" not in out and "  cure:" not in out


def test_only_seeds_vary(make_grid: MakeGrid, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_grid({"dtype": ("fp16",)}, seeds=3)
    assert report([str(path), "--no-notebook"]) == 0
    assert "Only the seed varies" in capsys.readouterr().out


def test_damaged_and_newer_records_are_left_out_by_name(
    make_grid: MakeGrid, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_grid()
    cells = sorted((path / "cells").iterdir())
    (cells[0] / "result.json").write_text('{"schema": 1, "cell_id"')
    newer = json.loads((cells[1] / "result.json").read_text()) | {"schema": 99}
    (cells[1] / "result.json").write_text(json.dumps(newer))
    assert report([str(path), "--no-notebook"]) == 0
    out = capsys.readouterr().out
    assert f"skipped: {cells[0] / 'result.json'}" in out
    assert "its schema is 99, newer than the 1 of this nangrid): upgrade nangrid" in out
    assert "skipped" in " ".join(read(path / "report.html").text)


def test_cells_of_two_machines_are_said_to_be(
    make_grid: MakeGrid, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_grid()
    factors = {"dtype": "fp32", "init": "zero", "seed": 0}
    other = make_record(cell_id="f" * 12, factors=factors, environment={"torch": "2.13.0", "cpu_capability": "AVX512"})
    directory = path / "cells" / other.cell_id
    directory.mkdir()
    write_history(directory, [{"step": s, "loss": 4.0} for s in range(16)])
    write_record(directory, other)
    assert report([str(path), "--no-notebook"]) == 0
    assert "The cells ran on 2 kinds of machine" in capsys.readouterr().out


def test_crashes_are_flagged_and_prove_nothing(
    make_grid: MakeGrid, make_record: MakeRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_grid()
    error = CellError("OutOfMemory", "killed at 24 GiB", "")
    crashed = make_record(
        cell_id="f" * 12,
        factors={"dtype": "fp32", "init": "zero", "seed": 0},
        status="error",
        error=error,
        steps_done=3,
    )
    (path / "cells" / crashed.cell_id).mkdir()
    write_record(path / "cells" / crashed.cell_id, crashed)
    assert report([str(path), "--no-notebook"]) == 0
    assert "1 run crashed or timed out; survival is censored where it stopped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (["optim=sgd"], "optim does not vary in this grid: its factors are dtype, init."),
        (["dtype=bf16"], "fits 2 combinations: name a level of each factor."),
        (["dtype=fp16", "init=zero"], "does not train: name a combination that does."),
    ],
)
def test_a_reference_that_is_none(
    reference: list[str], said: str, make_grid: MakeGrid, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report([str(make_grid()), "--reference", *reference]) == 2
    assert said in capsys.readouterr().err


def test_a_directory_of_hypotheses_that_is_none(make_grid: MakeGrid, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(make_grid()), "--hypotheses", "nowhere"]) == 2
    assert "--hypotheses nowhere holds no hypothesis" in capsys.readouterr().err
