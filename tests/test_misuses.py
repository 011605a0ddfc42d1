"""A misuse of the Python API ends with an InputError of one sentence, and nothing is written."""

import re
from pathlib import Path

import pytest
from misuses import MISUSES, REFUSED, outcome


def test_there_are_many_misuses() -> None:
    assert len(MISUSES) >= 40


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("misuse", MISUSES)
def test_a_misuse_is_refused_in_one_sentence(misuse: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, said = MISUSES[misuse]
    what, sentence = outcome(call, tmp_path)
    assert what == REFUSED and re.search(said, sentence), sentence
