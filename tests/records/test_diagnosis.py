"""The latest diagnosis per pair of cells is kept; damaged files are reported by name."""

from pathlib import Path

from nangrid.analysis.claims import Grade
from nangrid.records.diagnosis import DIAGNOSES, ClaimRecord, DiagnosisRecord, read_diagnoses, write_diagnosis


def test_latest_diagnosis_of_each_pair_is_kept(tmp_path: Path) -> None:
    claim = ClaimRecord("cause", ["dtype=fp16"], "proven", 3, 3, ["a" * 12])
    first = DiagnosisRecord("a" * 12, "b" * 12, ["sufficient: dtype=fp16"], [claim])
    again = DiagnosisRecord("a" * 12, "b" * 12, ["sufficient: dtype=fp16", "cure: dtype=bf16"], [claim])
    other = DiagnosisRecord("c" * 12, "b" * 12, [], [])
    for record in (first, other, again):
        write_diagnosis(tmp_path, record)
    assert read_diagnoses(tmp_path) == ([other, again], [])


def test_damaged_diagnosis_is_named(tmp_path: Path) -> None:
    write_diagnosis(tmp_path, DiagnosisRecord("a" * 12, "b" * 12, [], []))
    (path,) = (tmp_path / DIAGNOSES).iterdir()
    path.write_text(path.read_text()[:-5])
    records, (error,) = read_diagnoses(tmp_path)
    assert records == [] and str(error).startswith(f"{path} cannot be read")


def test_a_diagnosis_is_written_neither_through_a_link_nor_lost(tmp_path: Path) -> None:
    grid, outside = tmp_path / "grid", tmp_path / "outside"
    for folder in (grid, outside):
        folder.mkdir()
    record = DiagnosisRecord("a" * 12, "b" * 12, [], [])
    (grid / DIAGNOSES).symlink_to(outside)
    write_diagnosis(grid, record)
    assert read_diagnoses(grid) == ([record], []) and not list(outside.iterdir())
    (grid / "diagnoses.damaged-0").rename(grid / "link")
    (grid / DIAGNOSES).rename(grid / "before")
    (grid / DIAGNOSES).touch()
    write_diagnosis(grid, record)
    assert read_diagnoses(grid) == ([record], [])


def test_grid_without_diagnoses(tmp_path: Path) -> None:
    assert read_diagnoses(tmp_path) == ([], [])


def test_diagnoses_of_schemas_1_and_2_still_open(tmp_path: Path) -> None:
    (tmp_path / DIAGNOSES).mkdir()
    text = '{"failing": "a", "reference": "b", "told": ["cure: dtype=bf16"], "schema": 1}'
    (tmp_path / DIAGNOSES / "a-b.json").write_text(text)
    assert read_diagnoses(tmp_path) == ([DiagnosisRecord("a", "b", ["cure: dtype=bf16"], [])], [])
    (tmp_path / "diagnoses" / "a-b.json").write_text(
        text.replace("told", "lines").replace('"schema": 1', '"schema": 2')
    )
    assert read_diagnoses(tmp_path) == ([DiagnosisRecord("a", "b", ["cure: dtype=bf16"], [])], [])


def test_the_grades_of_schema_3_are_those_of_today(tmp_path: Path) -> None:
    claims = [ClaimRecord("cause", ["lr=1"], grade, 2, 3, ["c"]) for grade in ("proven", "seen, not told from chance")]
    write_diagnosis(tmp_path, DiagnosisRecord("a", "b", [], claims, schema=3))
    ((record,), errors) = read_diagnoses(tmp_path)
    assert [claim.grade for claim in record.claims] == [Grade.PROVEN, Grade.SEEN] and errors == []
