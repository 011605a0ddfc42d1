"""The bank of failures stays runnable: its checker proves a case of every part, and a score can be made."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bank(*arguments: str) -> str:
    """What the command prints; one small case of each part."""
    command = [sys.executable, "bench/accuracy", *arguments, "--sample", "1", "--count", "2", "--jobs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_declared_truths_hold() -> None:
    held, total = re.findall(r"(\d+) of (\d+) declarations hold", bank("check"))[0]
    assert held == total and int(total) >= 4


def test_a_score_shows_every_part() -> None:
    shown = bank("score", "--only", "nangrid")
    assert all(f"| {part} |" in shown for part in ("public threads", "published patterns", "generated", "all"))
    assert all(f"| {grade} |" in shown for grade in ("proven", "likely", "unknown"))
    assert "0 | 0 |" in shown, "no false alarm and no crash in the healthy runs"
