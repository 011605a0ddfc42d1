"""Trains one cell, or with -m a grid of cells."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from nangrid.cell.config import CONF_DIR, Config
from nangrid.commands.compose import with_run_levels
from nangrid.commands.exits import exit_code
from nangrid.commands.help import usage
from nangrid.commands.streams import words_aside
from nangrid.grid.launch import Finished, collecting, launch
from nangrid.grid.local import LocalExecutor
from nangrid.grid.plan import plain_config, task_overrides
from nangrid.records.errors import InputError
from nangrid.records.output.printed import say_json
from nangrid.records.output.results import CellResult, RunResult
from nangrid.records.safety.command import as_typed
from nangrid.records.safety.text import say

JSON = "--json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 the experiment ran (NaN is a result), 1 a cell crashed or is unfinished, 2 bad input.

    130 after Ctrl-C, SIGTERM or SIGHUP, which stop the cells cleanly.
    """
    with _stopping_on(signal.SIGTERM, signal.SIGHUP):
        return exit_code(lambda: _run(sys.argv[1:] if arguments is None else list(arguments)))


def _run(arguments: list[str]) -> None:
    as_json = JSON in arguments
    finished: list[Finished] = []
    try:
        with words_aside(as_json), collecting() as finished:
            _compose_and_launch([argument for argument in arguments if argument != JSON])
    finally:
        # a cell that crashed ends the command with exit code 1, and is a result all the same
        if as_json and finished:
            say_json(_result(finished[-1]))
    if as_json and not finished:
        raise InputError("--json prints what has run: leave out dry_run=true, --help or --cfg.")


def _result(finished: Finished) -> RunResult:
    from nangrid.reporting.answer.of_grid import of_grid  # pandas takes a second

    cells = [CellResult.of(record, str(finished.grid.cell(record.cell_id))) for record in finished.records]
    answer = of_grid(finished.grid, judged=finished.judged, with_text=False) if cells else None
    return RunResult(str(finished.grid.path), cells, answer)


def _compose_and_launch(arguments: list[str]) -> None:
    """Let Hydra read the command line. Its launcher plugin runs a multirun; a single cell is launched here."""
    # -m goes first: argparse refuses overrides on both sides of an option, as in `model=tiny -m seed=0,1`.
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))
    options, unknown = get_args_parser().parse_known_args(arguments)
    if unknown:
        raise InputError(f"{unknown[0]} is not an option: see --help. Config keys take no dashes (key=value).")
    if options.help:
        say(usage())
        return
    for override in options.overrides:
        name = override.removeprefix("+experiment=")
        known = name != override and (CONF_DIR / "experiment" / f"{name}.yaml").is_file()
        if known and not options.multirun and not options.cfg:
            raise InputError(as_typed(f"{override} is a grid: add -m, as in python -m src.run -m {override}."))
    if options.overrides:
        first = arguments.index(options.overrides[0])
        arguments = [*arguments[:first], *with_run_levels(arguments[first:])]
    ConfigStore.instance().store(name="schema", node=Config)
    composed: list[tuple[DictConfig, list[str]]] = []
    launcher: dict[str, Any] = {}

    @hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="config")
    def collect(config: DictConfig) -> None:
        composed.append((config, task_overrides(HydraConfig.get())))
        launcher.update(HydraConfig.get().launcher)

    with _command_line(arguments):
        collect()
    if composed:
        cells = [(plain_config(config), overrides) for config, overrides in composed]
        launch(cells, LocalExecutor(timeout_s=launcher.get("timeout_s")), single=True)


@contextmanager
def _stopping_on(*signals: signal.Signals) -> Iterator[None]:
    """Make the signals stop the launcher as Ctrl-C does. Only the main thread may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # nohup has SIGHUP ignored, and it must stay so.
    active = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.default_int_handler) for number in active}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Give hydra.main its arguments in sys.argv, and have it raise errors rather than print them and exit."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
