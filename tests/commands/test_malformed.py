"""A malformed command line ends with exit code 2 and one sentence, and nothing is written."""

from pathlib import Path

import pytest
from malformed import LINES, REFUSED, Line, outcome


def test_there_are_many_lines() -> None:
    assert len(set(LINES)) == len(LINES) >= 200


# Every third, because composing takes 0.3 s; bench/fuzz_input.py types all of them.
@pytest.mark.parametrize("line", LINES[::3], ids=lambda line: f"{line[0]} {' '.join(line[1])}"[:60])
def test_a_malformed_line_is_refused_in_one_sentence(line: Line, tmp_path: Path) -> None:
    what, printed = outcome(line, tmp_path)
    assert what == REFUSED, printed
