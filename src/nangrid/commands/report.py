"""`report`: prints the verdict of a finished grid, and writes its page and its executed notebook."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from subprocess import Popen

from nangrid.analysis.evidence import Evidence, gather
from nangrid.analysis.headroom import in_fp16
from nangrid.analysis.onsets import onset_pivot, write_onsets
from nangrid.cell.config import CONF_DIR
from nangrid.commands.exits import exit_code
from nangrid.commands.parser import make_parser
from nangrid.commands.streams import words_aside
from nangrid.records.atomic import write_bytes
from nangrid.records.grid import GridDirectory
from nangrid.records.output.printed import say_json
from nangrid.records.output.results import CellResult, ReportResult
from nangrid.records.safety.command import typed
from nangrid.records.safety.text import say
from nangrid.reporting.answer import answer_about
from nangrid.reporting.console import CleanConsole
from nangrid.reporting.notebook import begin
from nangrid.reporting.report import report_html
from nangrid.reporting.terminal import grid_summary

HYPOTHESES = CONF_DIR / "hypotheses"
PAGE = "report.html"
NOTEBOOK = CONF_DIR.parent / "notebooks" / "onset_report.py"
"""Lies next to conf/, in a checkout and in the wheel."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 if there is no grid or no such reference."""
    parser = make_parser("report", "Report which levels cause each event, and which cure it.")
    parser.add_argument("grid", metavar="GRID_DIR", help="the out= of the grid, such as outputs/default")
    parser.add_argument(
        "--reference",
        nargs="+",
        metavar="factor=level",
        default=[],
        help="combination to compare with (default: one that trains well and has the fewest failing neighbours)",
    )
    parser.add_argument(
        "--hypotheses",
        type=Path,
        default=HYPOTHESES,
        metavar="DIR",
        help="directory of hypotheses to decide (default: conf/hypotheses)",
    )
    parser.add_argument("--no-notebook", action="store_true", help="skip the executed notebook")
    parser.add_argument("--json", action="store_true", help="print JSON; words go to standard error")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _main(options))


def _main(options: Namespace) -> None:
    with words_aside(options.json):
        evidence, notebook = _report(options.grid, options.reference, options.hypotheses, not options.no_notebook)
    if options.json:
        say_json(_result(evidence, notebook, options.reference))


def _result(evidence: Evidence, notebook: str | None, reference: Sequence[str]) -> ReportResult:
    directory = GridDirectory.at(evidence.path)
    return ReportResult(
        grid=str(directory.path),
        page=str(directory.path / PAGE),
        notebook=notebook,
        answer=answer_about(str(directory.path), with_text=False, reference=reference),
        verdict=list(evidence.verdict),
        limits=list(evidence.limits),
        cells=[CellResult.of(record, str(directory.cell(record.cell_id))) for record in evidence.records],
    )


def _report(path: str, reference: Sequence[str], hypotheses: Path, notebook: bool) -> tuple[Evidence, str | None]:
    """What the grid shows, and the path of the executed notebook, if there is one."""
    directory = GridDirectory.at(path)
    parameters = {"GRID": str(directory.path), "HYPOTHESES": str(hypotheses.absolute()), "REFERENCE": list(reference)}
    notebook_process = begin(NOTEBOOK, directory.path, parameters) if notebook else None
    try:
        evidence = gather(directory, hypotheses, reference)
        write_onsets(directory, evidence.onsets)
        write_bytes(directory.path / PAGE, report_html(evidence).encode())
        _print(evidence)
    except BaseException:
        if notebook_process:
            notebook_process.kill()
            notebook_process.communicate()
        raise
    page = f"{directory.path / NOTEBOOK.stem}.html"
    executed = _executed(notebook_process, page) if notebook_process else False
    return evidence, page if executed else None


def _executed(process: Popen[str], page: str) -> bool:
    """Wait for the notebook, and say where it is or why it failed."""
    _, errors = process.communicate()
    done = process.returncode == 0
    say(f"notebook: {page}" if done else f"the notebook failed:\n{errors}")
    return done


def _print(evidence: Evidence) -> None:
    console = CleanConsole()
    console.print(grid_summary(evidence.onsets, onset_pivot(evidence.onsets)))
    console.print(" ".join(evidence.sentences), markup=False, highlight=False)
    lines = ["", *evidence.verdict, "", *evidence.limits, ""]
    if evidence.headroom:
        cell_id, samples = evidence.headroom
        lines += [f"headroom of cell {cell_id[:8]}: {in_fp16(samples)}", ""]
    lines += [f"page: {evidence.path / PAGE}", f"on one screen: {typed('python -m src.why', evidence.path)}"]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
