"""What a search found is kept, the latest last; what is damaged is named."""

from pathlib import Path

from nangrid.records.diagnosis import DIAGNOSES, DiagnosisRecord, read_diagnoses, write_diagnosis


def test_the_latest_of_each_pair_of_cells_is_kept(tmp_path: Path) -> None:
    first = DiagnosisRecord("a" * 12, "b" * 12, ["enough: dtype=fp16"])
    again = DiagnosisRecord("a" * 12, "b" * 12, ["enough: dtype=fp16", "cure: dtype=bf16"])
    other = DiagnosisRecord("c" * 12, "b" * 12, [])
    for record in (first, other, again):
        write_diagnosis(tmp_path, record)
    assert read_diagnoses(tmp_path) == ([other, again], [])


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    write_diagnosis(tmp_path, DiagnosisRecord("a" * 12, "b" * 12, []))
    (path,) = (tmp_path / DIAGNOSES).iterdir()
    path.write_text(path.read_text()[:-5])
    records, (error,) = read_diagnoses(tmp_path)
    assert records == [] and str(error).startswith(f"{path} cannot be read")


def test_a_grid_without_one(tmp_path: Path) -> None:
    assert read_diagnoses(tmp_path) == ([], [])
