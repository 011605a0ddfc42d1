"""`report`: what does a finished grid say? The onset table and the verdict."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from rich.console import Console

from nangrid.analysis.causes import Combination, Grid
from nangrid.analysis.onsets import onset_pivot, onset_table, write_onsets
from nangrid.analysis.verdict import verdict
from nangrid.commands.exits import exit_code
from nangrid.records.errors import InputError
from nangrid.records.grid import GridDirectory
from nangrid.reporting.terminal import grid_summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0, or 2 where there is no grid or no such reference."""
    parser = ArgumentParser(prog="report", description="Say which levels brought each event about, and what cures it.")
    parser.add_argument("grid", metavar="GRID_DIR", help="the out= of the grid, such as outputs/default")
    parser.add_argument(
        "--reference",
        nargs="+",
        metavar="factor=level",
        help="the combination to compare with; by default the one that trains to the lowest loss",
    )
    asked = parser.parse_args(arguments)
    return exit_code(lambda: _report(asked.grid, asked.reference))


def _report(path: str, reference: list[str] | None) -> None:
    directory = GridDirectory.at(path)
    records, untrusted = directory.records()
    if not records:
        raise InputError(f"{path} holds no finished cell: run its grid first.")
    autopsies = directory.autopsies(records)
    table = onset_table(records, autopsies)
    write_onsets(directory, table)
    grid = Grid(records, autopsies)
    console = Console()
    console.print(grid_summary(table, onset_pivot(table)))
    chosen = _chosen(grid, reference) if reference else None
    for line in [*verdict(grid, chosen), *(f"left out: {error}" for error in untrusted)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _chosen(grid: Grid, levels: list[str]) -> Combination:
    """The combination of the grid that has these levels."""
    named = dict(level.partition("=")[::2] for level in levels)
    if unknown := sorted(named.keys() - set(grid.factors)):
        raise InputError(f"{unknown[0]} does not vary in this grid: its factors are {', '.join(grid.factors)}.")
    matching = [c for c in grid.combinations.values() if named.items() <= dict(c.levels).items()]
    if len(matching) != 1:
        raise InputError(
            f"--reference {' '.join(levels)} fits {len(matching)} combinations: name a level of each factor."
        )
    if not matching[0].trains:
        raise InputError(f"--reference {' '.join(levels)} does not train: name a combination that does.")
    return matching[0]
