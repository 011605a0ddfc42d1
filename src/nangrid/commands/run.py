"""`run`: train one cell, or with -m a grid of cells."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from nangrid.cell.config import CONF_DIR, Config
from nangrid.commands.help import usage
from nangrid.commands.refusal import explain
from nangrid.grid.launch import CellsFailedError, launch
from nangrid.grid.plan import plain_config, task_overrides
from nangrid.records.errors import InputError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 the experiment ran (NaN is a result), 1 a cell crashed, 2 bad input, 130 Ctrl-C."""
    try:
        _compose_and_launch(sys.argv[1:] if arguments is None else list(arguments))
    except CellsFailedError as failure:
        print(failure, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on where this one stopped.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)
        return 2
    return 0


def _compose_and_launch(arguments: list[str]) -> None:
    """Let Hydra read the command line. Multiruns go to the launcher plugin; a single one is run from here."""
    # argparse refuses overrides on both sides of an option: `model=tiny -m seed=0,1` would be an error.
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))
    options, unknown = get_args_parser().parse_known_args(arguments)
    if unknown:
        raise InputError(f"{unknown[0]} is not an option: see --help; config keys take no dashes (key=value).")
    if options.help:
        print(usage())
        return
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
        launch(cells, timeout_s=launcher.get("timeout_s"), single=True)


@contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """hydra.main reads sys.argv, and prints an error and exits unless told to raise it."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
