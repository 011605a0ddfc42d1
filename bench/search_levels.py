"""Does `diagnose` find causes among the levels between the two sides, beside BugDoc's decision trees?

pip install --no-deps bugdoc future six pyzmq
python bench/search_levels.py

Seeded truth tables of 3 to 5 factors with 3 to 5 levels each and up to three causes of one or two levels; a cell fails
if it has all levels of a cause, never by itself. `diagnose` is given a failing cell, the reference and the levels
between, and confirms each answer with three seeds. BugDoc (Lourenco et al. 2020) starts from its own covering array, as
its `run` does, and may run 300 cells; every rule that it believes decisive for bad is taken as its claim. "found all":
the claimed rules fail in exactly the cells that fail. "false": a table with a rule that holds a cell that trains.
"""

from __future__ import annotations

import ast
import logging
import random
import tempfile
import threading
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from truth_oracle import diagnose

TABLES, MOST = 20, 300
RESULT = Path(__file__).parent / "results" / "search_levels.md"

Levels = frozenset[str]
Rule = Callable[[Levels], bool]


def table(number: int) -> tuple[list[int], list[Levels]]:
    """Levels besides the reference's per factor, and the causes, of which the first is in the failing cell."""
    draw = random.Random(number)
    most = draw.choice([2, 3, 4])
    factors = draw.choice([3, 4, 5])
    first = frozenset(f"f{factor}=1" for factor in draw.sample(range(factors), draw.choice([1, 2])))
    sizes = [draw.choice([1, 2]) for _ in range(draw.choice([1, 2]))]
    more = {frozenset(f"f{f}={draw.randint(1, most)}" for f in draw.sample(range(factors), size)) for size in sizes}
    causes = {first, *more}
    return [most] * factors, [cause for cause in causes if not any(other < cause for other in causes)]


def cells_of(levels: list[int]) -> list[Levels]:
    """Every cell."""
    return [
        frozenset(row) for row in product(*([f"f{f}={n}" for n in range(most + 1)] for f, most in enumerate(levels)))
    ]


def ours(levels: list[int], causes: list[Levels]) -> tuple[list[Rule], int]:
    """Rules and runs of `diagnose`."""
    found = diagnose(lambda cell, seed: any(c <= cell for c in causes), [most - 1 for most in levels], 3, MOST)
    claims = [frozenset(f"f{i}=1" for i in cause) for cause in found.causes.causes]
    if found.between is not None:
        claims += [frozenset(o for level in cause.levels for o in level) for cause in found.between.causes]
    return [claim.__le__ for claim in claims], found.runs


def end_points_alone(levels: list[int], causes: list[Levels]) -> tuple[list[Rule], int]:
    """The same without the levels between."""
    found = diagnose(lambda cell, seed: any(c <= cell for c in causes), [0] * len(levels), 3, MOST)
    return [frozenset(f"f{i}=1" for i in cause).__le__ for cause in found.causes.causes], found.runs


def bugdoc(levels: list[int], causes: list[Levels]) -> tuple[list[Rule], int]:
    """Rules and runs of BugDoc's debugging decision trees."""
    from bugdoc.algos.debugging_decision_trees import AutoDebug

    debugger = AutoDebug(max_iter=MOST)
    worker = threading.Thread(target=_answer, args=(causes,), daemon=True)
    worker.start()
    inputs = {f"f{factor}": [f"f{factor}={n}" for n in range(most + 1)] for factor, most in enumerate(levels)}
    with tempfile.TemporaryDirectory() as folder:
        decisive, _, runs = debugger.run(f"{folder}/table.vt", inputs, ["result"])
    worker.join()
    paths = [path for flag, path in decisive if flag == "bad"]
    return [_holds(path) for path in paths], runs


def _holds(path: list[tuple[int, Any, bool]]) -> Rule:
    return lambda cell: all((value in cell) is wanted for _, value, wanted in path)


def _answer(causes: list[Levels]) -> None:
    """Answer BugDoc's requests as its workers do, until none has come for some seconds."""
    import zmq

    context = zmq.Context()
    requests, replies = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    requests.connect("tcp://localhost:5557")
    replies.connect("tcp://localhost:5558")
    while requests.poll(8000):
        cell = ast.literal_eval(requests.recv_string().split("|")[1])
        replies.send_string(str([*cell, str(not any(cause <= frozenset(cell) for cause in causes))]))
    context.destroy(linger=0)


def judge(rules: Iterable[Rule], levels: list[int], causes: list[Levels]) -> tuple[bool, bool]:
    """Whether the rules fail in exactly the failing cells, and whether one holds a cell that trains."""
    rules, cells = list(rules), cells_of(levels)
    fails = [any(cause <= cell for cause in causes) for cell in cells]
    claimed = [any(rule(cell) for rule in rules) for cell in cells]
    return claimed == fails, any(claim and not fail for claim, fail in zip(claimed, fails, strict=True))


def main() -> None:
    logging.disable()
    methods = {"nangrid": ours, "nangrid, two levels": end_points_alone, "BugDoc": bugdoc}
    lines = [
        f"`python bench/search_levels.py`: {TABLES} truth tables; runs of nangrid hold three seeds per answer.",
        "",
        "| method | found all | false | runs, mean (most) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, method in methods.items():
        judged, runs = [], []
        for number in range(TABLES):
            rules, cost = method(*table(number))
            judged.append(judge(rules, *table(number)))
            runs.append(cost)
        found, false = (mean(column) for column in zip(*judged, strict=True))
        lines.append(f"| {name} | {found:.0%} | {false:.0%} | {mean(runs):.0f} ({max(runs)}) |")
        print(lines[-1], flush=True)
    RESULT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
