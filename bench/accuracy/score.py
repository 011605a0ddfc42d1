"""Asks every tool about every case, and compares the answers with the truth."""

from __future__ import annotations

import contextlib
import importlib
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pool
import torch
from case import Case
from marks import CLAIMS, marks, mechanism_mark
from tools import anomaly_mode, hf_debug, module_hooks, nangrid_watch
from tools.answer import Answer
from truth_check import Clocks, Stop

TOOLS: dict[str, Callable[[Case, Path], Answer]] = {
    "nangrid": nangrid_watch.ask,
    "anomaly mode": anomaly_mode.ask,
    "HF debug": hf_debug.ask,
    "module hooks": module_hooks.ask,
}
OPTIONAL = {
    "Lightning detect_anomaly": ("lightning_trainer", "ask_anomaly"),
    "Lightning check_finite": ("lightning_trainer", "ask_early_stopping"),
    "sherlorch": ("sherlorch_trace", "ask"),
    "trainscope": ("trainscope_run", "ask"),
}
"""Tools whose package may be missing, and the functions that ask them."""
ABSENT: dict[str, str] = {}
"""Those that are missing, and why."""
for _tool, (_module, _function) in OPTIONAL.items():
    try:
        TOOLS[_tool] = getattr(importlib.import_module(f"tools.{_module}"), _function)
    except ImportError as error:
        ABSENT[_tool] = str(error)


def score(cases: list[Case], jobs: int, only: list[str]) -> Iterator[dict[str, Any]]:
    """One row per case: its truth, the answers, the marks and the costs."""
    for case, found in pool.run(cases, lambda case, folder: _asked(case, folder, only), jobs):
        yield row(case, found or {"bare": {}, "answers": {"nangrid": {"crashed": "the process ended"}}, "seconds": {}})


def row(case: Case, found: dict[str, Any]) -> dict[str, Any]:
    """The answers of one case, marked."""
    answers = found["answers"]
    watched = answers.get("nangrid", {})
    return {
        "case": case.name,
        "part": case.part,
        "source": case.source,
        "pattern": case.pattern,
        "form": case.form,
        "healthy": case.onset is None,
        "truth": f"step {case.onset[0]} {case.onset[1]}: {' OR '.join(map(str, case.origins))}" if case.onset else "",
        "mechanisms": list(case.mechanisms),
        "marks": {tool: marks(case, tool, answer) for tool, answer in answers.items()},
        "mechanism": mechanism_mark(case, watched),
        "alarm": {tool: answer.get("step") is not None for tool, answer in answers.items()},
        "same_bits": _same_bits(found["bare"], watched),
        **found,
    }


def complete(tool: str, row: dict[str, Any]) -> bool:
    """Whether everything that the tool claims is right."""
    given = row["marks"].get(tool)
    return bool(given) and all(given[claim] for claim in CLAIMS[tool])


def _same_bits(bare: dict[str, Any], watched: dict[str, Any]) -> bool:
    """Whether the losses that both runs came to, and the parameters at the end, are equal bit for bit."""
    pairs = zip(bare.get("losses", []), watched.get("losses", []), strict=False)
    same_losses = all(repr(one) == repr(other) for one, other in pairs)
    return same_losses and bare.get("parameters") == watched.get("parameters")


def _asked(case: Case, folder: Path, only: list[str]) -> dict[str, Any]:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _bare(case)  # warms up what a first step of a process costs
    began = time.process_time()
    bare = _bare(case)
    seconds = {"bare": time.process_time() - began}
    answers = {}
    for tool, ask in TOOLS.items():
        if only and tool not in only:
            continue
        began = time.process_time()
        try:
            answers[tool] = ask(case, folder / tool.replace(" ", "_")).record()
        except Exception as error:
            answers[tool] = {"crashed": f"{type(error).__name__}: {str(error)[:200]}"}
        seconds[tool] = time.process_time() - began
    return {"bare": bare, "answers": answers, "seconds": seconds}


def _bare(case: Case) -> dict[str, Any]:
    """Losses and parameters of the run up to its onset, without any tool."""
    subject = case.build()
    clocks = Clocks(subject, -1, lambda model: None)  # type: ignore[arg-type, return-value]
    with contextlib.suppress(Stop):
        subject.run(case.horizon, clocks)
    return {"losses": clocks.seen.losses, "parameters": nangrid_watch.fingerprint(subject.model)}
