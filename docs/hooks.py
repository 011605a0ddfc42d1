"""Fills the site with what the code knows: the studies' report pages, the `--help` texts and the config keys."""

from __future__ import annotations

import ast
import html
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from nangrid.records import defaults

ROOT = Path(__file__).parents[1]
STUDIES = ("default", "peft1715")
COMMANDS = ("run", "why", "diagnose", "replay", "report", "check", "status")
CONFIG = ROOT / "src" / "nangrid" / "cell" / "config.py"
CERTAINTY = ROOT / "src" / "nangrid" / "records" / "explain" / "certainty.py"
OUTPUT = [ROOT / "src" / "nangrid" / "records" / name for name in ("output/answer.py", "output/results.py")]
YAML = {"None": "null", "True": "true", "False": "false"}
"""Python's default -> what to type."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the report page of each study, which `src.report` makes from the committed records, and these records."""
    for study in STUDIES:
        for name, content in report_files(study).items():
            files.append(File.generated(config, f"studies/{study}/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the lines `<!-- generated: NAME -->`."""
    for name, generate in GENERATED.items():
        marker = f"<!-- generated: {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, generate())
    return markdown


@cache
def report_files(study: str) -> dict[str, bytes]:
    """The page, with the directory named as a reader's own run would have it, and the records of the cells."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(ROOT / "docs" / study / "records.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        _typed("report", f"{folder}/{study}", "--no-notebook")
        grid = Path(folder) / study
        records = {str(path.relative_to(grid)): path.read_bytes() for path in grid.glob("cells/*/*.json")}
        page = (grid / "report.html").read_text().replace(f"{folder}/", "outputs/")
        return records | {"report.html": page.encode()}


def _typed(command: str, *arguments: str) -> str:
    """What `python -m src.COMMAND` prints in a terminal of 80 columns."""
    environment = os.environ | {"COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, "-m", f"src.{command}", *arguments]
    return subprocess.run(line, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout


@cache
def help_texts() -> str:
    """One section per command."""
    return "\n".join(f"## {name}\n\n```text\n{_typed(name, '--help').rstrip()}\n```\n" for name in COMMANDS)


def top_level_keys() -> str:
    """The keys of `Config` that are not groups."""
    config = _config_classes()["Config"]
    return _table([field for field in _fields(config) if not field[1].endswith("Config")])


def groups() -> str:
    """One section per factor: its fields, then the levels that conf/ holds."""
    classes = _config_classes()
    names = {field: kind for field, kind, *_ in _fields(classes["Config"]) if kind in classes}
    return "\n".join(_group(name, classes[kind]) for name, kind in names.items())


def output() -> str:
    """One section per object that `--json` prints, the whole before its parts."""
    parsed = [ast.parse(path.read_text()).body for path in (*OUTPUT, CERTAINTY)]
    classes = [node for body in parsed for node in reversed(body) if isinstance(node, ast.ClassDef)]
    return "\n".join(_object(node) for node in classes)


def _object(node: ast.ClassDef) -> str:
    rows = [
        f"| `{name}` | `{kind}` | {html.escape(' '.join(text.split()))} |".replace(" | None`", "`, or null")
        for name, kind, _, text in _fields(node)
    ]
    table = ["| field | type | meaning |", "| --- | --- | --- |", *rows, ""] if rows else []
    return "\n".join([f"## {node.name}", "", (ast.get_docstring(node) or "").partition("\n")[0], "", *table])


def _group(name: str, config: ast.ClassDef) -> str:
    levels = [_level(path) for path in sorted((ROOT / "conf" / name).glob("*.yaml"))]
    fields = [(f"{name}.{field}", *rest) for field, *rest in _fields(config) if field != "name"]
    lines = [f"## {name}", "", ast.get_docstring(config) or "", ""]
    lines += [_table(fields), ""] if fields else []
    if not any(sets for _, sets in levels):
        return "\n".join([*lines, f"Levels: {', '.join(f'`{level}`' for level, _ in levels)}.", ""])
    rows = [f"| `{level}` | {', '.join(f'`{line}`' for line in sets) or '-'} |" for level, sets in levels]
    return "\n".join([*lines, "| level | sets |", "| --- | --- |", *rows, ""])


def _level(path: Path) -> tuple[str, list[str]]:
    lines = [line.split("  #")[0].strip() for line in path.read_text().splitlines()]
    return path.stem, [line for line in lines if line and not line.startswith(("#", "name:", "- ", "defaults:"))]


def _config_classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for node in ast.parse(CONFIG.read_text()).body if isinstance(node, ast.ClassDef)}


def _fields(config: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and docstring; a docstring is the string that follows its field."""
    for node, after in zip(config.body, [*config.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign):
            continue
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        yield ast.unparse(node.target), ast.unparse(node.annotation), _default(node.value), str(text)


def _default(value: ast.expr | None) -> str:
    """The default as Python; empty for a field that its level fixes."""
    if value is None or ast.unparse(value) == "MISSING":
        return ""
    return repr(getattr(defaults, value.id, "")) if isinstance(value, ast.Name) else ast.unparse(value)


def _table(fields: list[tuple[str, str, str, str]]) -> str:
    rows = [
        f"| `{name}` | `{kind}` | {f'`{YAML.get(default, default)}`' if default else 'by level'} "
        f"| {html.escape(' '.join(text.split()))} |".replace(" | None`", "`, or null")
        for name, kind, default, text in fields
    ]
    return "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows])


GENERATED: dict[str, Callable[[], str]] = {
    "help": help_texts,
    "keys": top_level_keys,
    "groups": groups,
    "output": output,
}
