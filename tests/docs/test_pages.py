"""The pages agree with the code, and the README fits its first screens."""

import ast
import re
from pathlib import Path

import pytest

from nangrid.records import mechanisms

ROOT = Path(__file__).parents[2]


def headings(page: str) -> set[str]:
    return set(re.findall(r"^#+ (.+)$", (ROOT / "docs" / page).read_text(), re.MULTILINE))


def test_every_mechanism_has_a_section_with_signature_cause_and_fix() -> None:
    page = (ROOT / "docs" / "reference" / "mechanisms.md").read_text()
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for mechanism in mechanisms.TITLES:
        assert all(f"**{part}.**" in sections[mechanism] for part in ("Signature", "Why", "Fix")), mechanism


def test_every_check_of_preflight_has_a_row() -> None:
    tree = ast.parse((ROOT / "src" / "nangrid" / "watch" / "preflight.py").read_text())
    first = [node.args[0] for node in ast.walk(tree) if _makes_a_finding(node)]
    named = {node.value if isinstance(node, ast.Constant) else getattr(mechanisms, ast.unparse(node)) for node in first}
    rows = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "docs" / "guide" / "preflight.md").read_text(), re.MULTILINE)
    assert len(named) > 10 and named == set(rows)


def _makes_a_finding(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 9_500


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text()))
def test_a_link_of_the_readme_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


def test_the_map_names_every_package() -> None:
    drawn = (ROOT / "docs" / "assets" / "map.svg").read_text()
    packages = [path.parent.name for path in (ROOT / "src" / "nangrid").glob("*/__init__.py")]
    assert len(packages) == 10 and all(f">{package}</text>" in drawn for package in packages)
