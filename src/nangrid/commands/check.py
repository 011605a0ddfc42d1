"""Checks a run before its first step: builds the cell and inspects it, without training."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from nangrid.commands.compose import composed, with_run_levels
from nangrid.commands.exits import exit_code
from nangrid.commands.parser import make_parser
from nangrid.grid.plan import plan_cell
from nangrid.grid.worker import ENVIRONMENT
from nangrid.records.errors import InputError
from nangrid.records.output.printed import say_json
from nangrid.records.output.results import CheckFinding, CheckResult
from nangrid.records.safety.text import say

EPILOG = """\
python -m src.check                                              the run of huggingface/peft issue 1715
python -m src.check dtype=fp16 data=jsonl data.path=chat.jsonl   your own data
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 if the cell could be checked, whatever was found; 2 if it cannot be built."""
    parser = make_parser("check", "Build the cell and inspect it before its first step. Nothing is trained.", EPILOG)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, as run takes them")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_intermixed_args(arguments)
    os.environ.update(ENVIRONMENT)  # as in the cell's own process, before torch is imported
    return exit_code(lambda: _check(options.overrides, options.json))


def _check(overrides: Sequence[str], as_json: bool) -> None:
    overrides = with_run_levels(overrides)
    config = plan_cell(composed(overrides), overrides).cell_config
    if config.python is not None:
        raise InputError(f"check builds the cell in this Python, not in python={config.python}: leave python= out.")
    from transformers.utils.logging import disable_progress_bar

    from nangrid.cell.build import build_cell, check_cell

    disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as scratch:  # transformers' Trainer creates its output_dir at once
            cell = build_cell(config, Path(scratch))
        began = time.perf_counter()
        findings = check_cell(cell, config, trial=True)
    if as_json:
        listed = [CheckFinding(f.check, f.severity, f.evidence, f.fix) for f in findings]
        say_json(CheckResult(listed, cell.ledger.warnings, cell.ledger.as_dict()))
        return
    for line in cell.ledger.warnings:
        say(f"warning: not as requested: {line}")
    for finding in findings:
        say(finding)
    counts = {severity: sum(f.severity == severity for f in findings) for severity in ("error", "warning", "note")}
    summary = ", ".join(f"{number} {severity}{'s' * (number != 1)}" for severity, number in counts.items())
    say(f"{summary}; nothing was trained ({time.perf_counter() - began:.1f} s)", error=True)
