"""What becomes of malformed command lines, and of misuses of the Python API? Counted by outcome.

    python bench/fuzz_input.py

Takes the lines of tests/commands/malformed.py and the misuses of tests/misuses.py. Trains nothing. Prints a table and
writes bench/results/fuzz_input.md.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "fuzz_input.md"
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "commands")]

import malformed  # noqa: E402
import misuses  # noqa: E402


def main() -> None:
    warnings.simplefilter("ignore")
    counts: dict[str, Counter[str]] = {}
    for line in malformed.LINES:
        with tempfile.TemporaryDirectory() as folder:
            what, _ = malformed.outcome(line, Path(folder))
        counts.setdefault(f"command lines of {line[0]}", Counter())[what] += 1
    api = counts.setdefault("misuses of the API", Counter())
    for misuse, _ in misuses.MISUSES.values():
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            api[misuses.outcome(misuse, Path(folder))[0]] += 1
            os.chdir(ROOT)
    rows = [f"| {what} | {outcome} | {n} |" for what, found in counts.items() for outcome, n in found.items()]
    total = sum(found.total() for found in counts.values())
    head = ["`python bench/fuzz_input.py`", "", "| input | outcome | times |", "| --- | --- | ---: |"]
    text = "\n".join([*head, *rows, f"| **all** | | {total} |", ""])
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
