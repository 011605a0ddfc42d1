"""Runs BugDoc and mlbisect on the truth tables of the search benches.

Both are on PyPI, and neither is a dependency of nangrid:

    pip install mlbisect
    pip install --no-deps bugdoc future six pyzmq

A claim of either is a rule about cells; a cell is a set of levels, `f0=1`, those of the reference (`f0=0`) included.
"""

from __future__ import annotations

import ast
import logging
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

try:
    import zmq
    from bugdoc.algos.debugging_decision_trees import AutoDebug
    from mlbisect.executors import RunResult
    from mlbisect.manifest import Manifest
    from mlbisect.search import find_culprits
except ImportError as error:
    sys.exit(f"No module {error.name}: pip install mlbisect; pip install --no-deps bugdoc future six pyzmq")

Levels = frozenset[str]
Rule = Callable[[Levels], bool]
logging.disable()

SMALLEST_DROP = 0.3
"""The smallest drop in the share of finite runs that mlbisect is to find."""


def cells_of(levels: list[int]) -> list[Levels]:
    """Every cell; `levels`: per factor, how many there are besides the reference's."""
    return [
        frozenset(row) for row in product(*([f"f{f}={n}" for n in range(most + 1)] for f, most in enumerate(levels)))
    ]


def judge(rules: Iterable[Rule], levels: list[int], causes: list[Levels]) -> tuple[bool, bool]:
    """Whether the rules hold exactly the cells with a cause, and whether one holds a cell without."""
    rules, cells = list(rules), cells_of(levels)
    fails = [any(cause <= cell for cause in causes) for cell in cells]
    claimed = [any(rule(cell) for rule in rules) for cell in cells]
    return claimed == fails, any(claim and not fail for claim, fail in zip(claimed, fails, strict=True))


def bugdoc(fails: Callable[[Levels], bool], levels: list[int], most: int) -> tuple[list[Rule], int]:
    """Rules and runs of BugDoc's debugging decision trees (Lourenco et al. 2020), each cell run once.

    It starts from its own covering array, as its `run` does. Every rule that it believes decisive for bad is a claim.
    """
    debugger, done = AutoDebug(max_iter=most), threading.Event()
    worker = threading.Thread(target=_answer, args=(fails, done), daemon=True)
    worker.start()
    inputs = {f"f{factor}": [f"f{factor}={n}" for n in range(more + 1)] for factor, more in enumerate(levels)}
    with tempfile.TemporaryDirectory() as folder:
        decisive, _, runs = debugger.run(f"{folder}/table.vt", inputs, ["result"])
    done.set()
    worker.join()
    return [_holds(path) for flag, path in decisive if flag == "bad"], runs


def _holds(path: list[tuple[int, Any, bool]]) -> Rule:
    return lambda cell: all((value in cell) is wanted for _, value, wanted in path)


def _answer(fails: Callable[[Levels], bool], done: threading.Event) -> None:
    """Answer BugDoc's requests as its workers do."""
    context = zmq.Context()
    requests, replies = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    requests.connect("tcp://localhost:5557")
    replies.connect("tcp://localhost:5558")
    while not done.is_set():
        if requests.poll(100):
            cell = ast.literal_eval(requests.recv_string().split("|")[1])
            replies.send_string(str([*cell, str(not fails(frozenset(cell)))]))
    context.destroy(linger=0)


def manifest(axes: int, smallest: float, most: int) -> Manifest:
    """A problem of mlbisect with its own settings but for the runs that it may take."""
    return Manifest.model_validate(
        {
            "version": 1,
            "name": "table",
            "metric": {"name": "metric", "direction": "higher_is_better", "min_effect": smallest},
            "run": {"command": "none"},
            "axes": [{"name": f"f{number}", "old": "0", "new": "1"} for number in range(axes)],
            "budget": {"max_runs": most},
        }
    )


class _Finite:
    """Runs a cell of a truth table: its metric is 1 if it is finite, and 0 if it fails."""

    def __init__(self, fails: Callable[[Levels, int], bool]) -> None:
        self.fails = fails

    def run(self, config: Any, seed: int) -> RunResult:
        """See mlbisect.executors.Executor."""
        failed = self.fails(frozenset(f"{axis}=1" for axis in config.axes), seed)
        return RunResult(config.axes, seed, float(not failed), ok=True, duration_s=0.0)


def mlbisect(fails: Callable[[Levels, int], bool], axes: int, most: int) -> tuple[list[Rule], int]:
    """Rules and runs of mlbisect; it claims its culprits if it does not call its search inconclusive."""
    found = find_culprits(_Finite(fails), manifest(axes, SMALLEST_DROP, most))
    culprits = found.culprit_sets if found.status == "culprit_found" else ()
    return [frozenset(f"{axis}=1" for axis in culprit).__le__ for culprit in culprits], found.runs_used
