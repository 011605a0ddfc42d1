"""The bounds that keep the code readable: files, functions and folders stay small, and private nouns stay out."""

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRIVATE_NOUNS = "born|birth|silenced|surroundings|surveyor|crew|laboratory|settlement|speech|leaf"
TORCHS_OWN = r"\btree_leaves\("
"""What torch calls the ends of a nested container."""


def sources() -> list[Path]:
    return sorted((ROOT / "src").rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_file_is_longer_than_400_lines() -> None:
    lines = {named(path): len(path.read_text().splitlines()) for path in sources()}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_no_function_is_longer_than_50_lines() -> None:
    lengths = {
        f"{named(path)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > 50} == {}


def test_no_folder_holds_more_than_16_files() -> None:
    counts = Counter(named(path.parent) for path in sources())
    assert {folder: count for folder, count in counts.items() if count > 16} == {}


def test_private_nouns_stay_out_of_code_and_pages() -> None:
    command = ["git", "grep", "-nIwiE", PRIVATE_NOUNS, "--", "src", "README.md", "docs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert [line for line in done.stdout.splitlines() if not re.search(TORCHS_OWN, line)] == []
