"""Measures how often nangrid finds origin and mechanism of a failure, with other tools on the same cases.

python bench/accuracy check [CASE ...]      prove what the cases declare, without nangrid
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MKL_CBWR": "AUTO,STRICT"}

import torch
from bank import PARTS, load
from case import Case
from truth_check import check


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="prove what the cases declare")
    checking.add_argument("names", nargs="*", metavar="CASE", help="all cases of the parts if left out")
    checking.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    checking.add_argument("-v", "--verbose", action="store_true", help="show what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cases = load(tuple(options.parts))
    chosen = [cases[name] for name in options.names] or list(cases.values())
    return 1 if sum([not holds(case, options.verbose) for case in chosen]) else 0


def holds(case: Case, verbose: bool) -> bool:
    """Check one case and print the outcome."""
    began = time.perf_counter()
    try:
        wrong, told = check(case)
    except Exception as error:
        wrong, told = [f"it crashed: {type(error).__name__}: {error}"], []
    seconds = time.perf_counter() - began
    print(f"{'WRONG' if wrong else 'ok':5} {case.name:45} {seconds:5.1f} s  {case.source[:60]}", flush=True)
    for line in [*(f"- {complaint}" for complaint in wrong), *(told if verbose or wrong else [])]:
        print(f"      {line}")
    return not wrong


if __name__ == "__main__":
    sys.exit(main())
