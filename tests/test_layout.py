"""The bounds that keep the code readable: files and folders stay small."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]


def sources() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_file_is_longer_than_400_lines() -> None:
    lines = {named(path): len(path.read_text().splitlines()) for path in sources()}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_no_folder_holds_more_than_16_files() -> None:
    counts = Counter(named(path.parent) for path in sources())
    assert {folder: count for folder, count in counts.items() if count > 16} == {}
