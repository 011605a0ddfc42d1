"""Writes the tables of the results: accuracy per part, tools side by side, confusion, cost and every miss."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from marks import CLAIMS, FIELDS, described
from score import ABSENT, complete

Row = dict[str, Any]
TITLES = {"threads": "public threads", "published": "published patterns", "generated": "generated"}
PACKAGES = ("torch", "transformers", "pytorch-lightning", "sherlorch", "trainscope")
GRADES = ("proven", "likely", "unknown")


def tables(rows: list[Row], command: str, seconds: float) -> str:
    """The whole page."""
    failing, healthy = [row for row in rows if not row["healthy"]], [row for row in rows if row["healthy"]]
    sections = [
        f"`{command}`",
        f"{len(failing)} failing and {len(healthy)} healthy runs in {seconds / 60:.0f} minutes. {_versions()}",
        "### nangrid, part by part",
        _parts(failing),
        "### The same cases, every tool on what it claims",
        _tools(failing),
        "### How often each grade is right",
        _calibration(failing),
        "### Generated cases by the form of their loop",
        _forms(failing),
        "### Healthy runs",
        _alarms(healthy),
        "### Mechanisms: truth and answer",
        _confusion(failing),
        _missed(failing),
        "### Cost",
        _cost(healthy),
        "### Every miss of nangrid",
        _misses(rows),
    ]
    return "\n\n".join(sections) + "\n"


def _versions() -> str:
    found = [f"{name} {_version(name)}" for name in PACKAGES]
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    return f"Python {platform.python_version()}, {', '.join(found)}; {machine}."


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", "| --- " + "| ---: " * (len(head) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def _share(part: int, whole: int) -> str:
    return f"{part} ({100 * part / whole:.1f} %)" if whole else "-"


def _parts(failing: list[Row]) -> str:
    groups = {title: [row for row in failing if row["part"] == part] for part, title in TITLES.items()}
    groups = {title: members for title, members in groups.items() if members} | {"all": failing}

    def shares(fits: Callable[[Row], bool]) -> list[str]:
        return [_share(sum(map(fits, members)), len(members)) for members in groups.values()]

    def counts(kind: str) -> list[int]:
        return [sum(row["mechanism"] == kind for row in members) for members in groups.values()]

    body: list[list[Any]] = [["cases", *map(len, groups.values())]]
    body += [[f"{field} right", *shares(partial(_marked, field=field))] for field in FIELDS]
    body += [["all six right", *shares(partial(complete, "nangrid"))]]
    body += [["wrong name", *counts("wrong")], ["name missed", *counts("missed")]]
    body += [["reproduced", *shares(lambda row: bool(_said(row, "reproduced")))]]
    body += [["bits unchanged", *shares(lambda row: row["same_bits"])]]
    return _table(["", *groups], body)


def _marked(row: Row, field: str) -> bool:
    return bool(row["marks"].get("nangrid", {}).get(field))


def _tools(failing: list[Row]) -> str:
    shown = ("step", "op", "module", "line")
    body = []
    for tool, claims in CLAIMS.items():
        asked = [row for row in failing if tool in row["marks"]]
        if not asked:
            continue
        answers = sum(row["alarm"][tool] for row in asked)
        right = [sum(row["marks"][tool].get(field, False) for row in asked) for field in shown]
        fields = [
            _rate(count, len(asked)) if field in claims else "-" for field, count in zip(shown, right, strict=True)
        ]
        whole = sum(complete(tool, row) for row in asked)
        body.append([tool, answers, *fields, _rate(whole, len(asked))])
    skipped = [f"{tool} was skipped: {reason}." for tool, reason in ABSENT.items()]
    note = "A dash stands for what a tool does not claim; the last column is for all that it claims."
    return "\n\n".join([_table(["tool", "answers", *shown, "all right"], body), note, *skipped])


def _rate(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _calibration(failing: list[Row]) -> str:
    """Grade -> how many origins and mechanisms carry it, and how many of those are right."""
    body = []
    for grade in GRADES:
        origins = [row for row in failing if _said(row, "origin_grade") == grade]
        named = [row for row in failing if _said(row, "mechanism_grade") == grade]
        right = sum(complete("nangrid", row) for row in origins)
        fits = sum(row["mechanism"] in ("right", "unnamed") for row in named)
        body.append([grade, len(origins), _share(right, len(origins)), len(named), _share(fits, len(named))])
    note = (
        "An origin is right if all six fields are. A mechanism is right if its name fits; `unknown` is right if no "
        "name fits."
    )
    return f"{_table(['grade', 'origins', 'right', 'mechanisms', 'right'], body)}\n\n{note}"


def _said(row: Row, field: str) -> Any:
    return row["answers"].get("nangrid", {}).get(field)


def _forms(failing: list[Row]) -> str:
    body = []
    for form in sorted({row["form"] for row in failing if row["form"]}):
        members = [row for row in failing if row["form"] == form]
        whole = sum(complete("nangrid", row) for row in members)
        wrong = sum(row["mechanism"] == "wrong" for row in members)
        bits = sum(row["same_bits"] for row in members)
        body.append([form, len(members), _share(whole, len(members)), wrong, bits])
    return _table(["form", "cases", "all six", "mechanism wrong", "bits unchanged"], body) if body else "None."


def _alarms(healthy: list[Row]) -> str:
    body = []
    for tool in CLAIMS:
        asked = [row for row in healthy if tool in row["alarm"]]
        if asked:
            crashed = sum("crashed" in row["answers"][tool] for row in asked)
            body.append([tool, len(asked), sum(row["alarm"][tool] for row in asked), crashed])
    bits = sum(row["same_bits"] for row in healthy)
    table = _table(["tool", "healthy runs", "false alarms", "crashes"], body)
    return f"{table}\n\nWith nangrid, {bits} of {len(healthy)} ended with the same losses and parameters, bit for bit."


def _confusion(failing: list[Row]) -> str:
    body = []
    for truth in sorted({" or ".join(row["mechanisms"]) for row in failing}):
        members = [row for row in failing if " or ".join(row["mechanisms"]) == truth]
        kinds = Counter(row["mechanism"] for row in members)
        others = Counter(_said(row, "mechanism") or "nothing" for row in members if row["mechanism"] == "wrong")
        named = ", ".join(f"{name} ({count})" for name, count in others.most_common())
        unknown = kinds["missed"] + kinds["unnamed"]
        body.append([truth or "no name fits", len(members), kinds["right"] or "", unknown or "", named])
    return _table(["truth", "cases", "named so", "unknown", "another name"], body)


def _missed(failing: list[Row]) -> str:
    """One line per name that fits and was not given."""
    found: dict[str, Counter[str]] = {}
    for row in failing:
        if row["mechanism"] == "missed":
            name = row["pattern"] if row["part"] == "generated" else row["case"]
            found.setdefault(" or ".join(row["mechanisms"]), Counter())[name] += 1
    lines = [
        f"- {truth}: {', '.join(f'`{name}`' + f' ({count})' * (count > 1) for name, count in names.items())}"
        for truth, names in sorted(found.items())
    ]
    return "\n".join(["Names that fit and were not given:", "", *lines]) if lines else "Every name that fits was given."


def _cost(healthy: list[Row]) -> str:
    ratios = {tool: _ratios(tool, healthy) for tool in CLAIMS}
    body = [[tool, f"{median(values):.1f}"] for tool, values in ratios.items() if values]
    note = (
        "CPU time of a healthy run, relative to the bare run: medians. Models are tiny: fixed costs per step dominate."
    )
    return f"{note}\n\n{_table(['tool', 'times the bare run'], body)}"


def _ratios(tool: str, rows: list[Row]) -> list[float]:
    timed = [row["seconds"] for row in rows if tool in row["seconds"] and row["seconds"]["bare"] > 0]
    return [seconds[tool] / seconds["bare"] for seconds in timed]


def _misses(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        said = described(row["answers"].get("nangrid", {}))
        if row["healthy"]:
            if row["alarm"].get("nangrid") or not row["same_bits"]:
                lines.append(f"- `{row['case']}` is healthy; said: {said}; same bits: {row['same_bits']}")
            continue
        wrong = [field for field in FIELDS if not _marked(row, field)]
        wrong += ["mechanism"] * (row["mechanism"] == "wrong") + ["bits"] * (not row["same_bits"])
        if wrong:
            truth = f"{row['truth']} [{' or '.join(row['mechanisms']) or 'no name'}]"
            lines.append(f"- `{row['case']}` ({row['source']}): {', '.join(wrong)}. Truth: {truth}. Said: {said}.")
    return "\n".join(lines) or "None."
