"""Measures how often nangrid finds origin and mechanism of a failure, with other tools on the same cases.

python bench/accuracy check        prove what the cases declare, without nangrid
python bench/accuracy score        ask nangrid and the other tools, and write bench/results/accuracy.md
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT"}

import pool
import torch
from bank import COUNT, PARTS, SAMPLE, SEED, load, sample
from case import Case


def main() -> int:
    options = parsed()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cases = load(tuple(options.parts), options.seed, options.count)
    unknown = [name for name in options.names if name not in cases]
    if unknown:
        print(f"There is no case called {', '.join(unknown)} in {', '.join(options.parts)}.")
        return 2
    chosen = [cases[name] for name in options.names] or list(cases.values())
    chosen = sample(chosen, options.sample) if options.sample else chosen
    return check(chosen, options) if options.command == "check" else score(chosen, options)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("check", "score"):
        command = commands.add_parser(name)
        command.add_argument("names", nargs="*", metavar="CASE", help="all cases of the parts if left out")
        command.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
        command.add_argument("--seed", type=int, default=SEED, help="of the generated cases")
        command.add_argument("--count", type=int, default=COUNT, help="how many cases are generated")
        command.add_argument("--jobs", type=int, default=2, help="processes at a time")
        command.add_argument("--sample", type=int, nargs="?", const=SAMPLE, help="about so many cases of each part")
        command.add_argument("-v", "--verbose", action="store_true")
        if name == "score":
            command.add_argument("--only", nargs="+", default=[], metavar="TOOL", help="ask these tools alone")
            command.add_argument("--rows", type=Path, help="also write every answer here, one JSON object per line")
            command.add_argument("--result", type=Path, help="where the tables go")
    return parser.parse_args()


def check(cases: list[Case], options: argparse.Namespace) -> int:
    """Prove the declarations; exit status 1 if one does not hold."""
    from truth_check import check as proved

    wrong = 0
    for case, found in pool.run(cases, lambda case, folder: proved(case), options.jobs):
        complaints, told = found or (["it crashed"], [])
        wrong += bool(complaints)
        print(f"{'WRONG' if complaints else 'ok':5} {case.name:70} {case.source}", flush=True)
        for line in [*(f"- {text}" for text in complaints), *(told if options.verbose or complaints else [])]:
            print(f"      {line}")
    print(f"{len(cases) - wrong} of {len(cases)} declarations hold")
    return 1 if wrong else 0


def score(cases: list[Case], options: argparse.Namespace) -> int:
    """Ask the tools, print each failure of nangrid, write the tables."""
    import page
    from marks import described
    from score import complete
    from score import score as scored

    began, rows = time.monotonic(), []
    if options.rows:
        options.rows.parent.mkdir(parents=True, exist_ok=True)
        options.rows.write_text("")
    for row in scored(cases, options.jobs, options.only):
        rows.append(row)
        good = _good(row, complete)
        print(f"{'ok' if good else 'MISS':5} {row['case']}", flush=True)
        if not good or options.verbose:
            print(f"      truth {row['truth'] or 'healthy'} {row['mechanisms']}")
            print(f"      said  {described(row['answers'].get('nangrid', {}))}")
        if options.rows:
            with options.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
    text = page.tables(rows, " ".join(["python bench/accuracy", *sys.argv[1:]]), time.monotonic() - began)
    if options.result:
        options.result.write_text(text)
    print(text)
    return 0


def _good(row: dict[str, Any], complete: Any) -> bool:
    if row["healthy"]:
        return not row["alarm"].get("nangrid") and row["same_bits"]
    return complete("nangrid", row) and row["mechanism"] != "wrong" and row["same_bits"]


if __name__ == "__main__":
    sys.exit(main())
