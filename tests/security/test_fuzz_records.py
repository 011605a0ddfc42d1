"""Random and mutated records through every reader: an error that names the file, in bounded memory."""

import random
import resource
from pathlib import Path

import pytest
from mutations import mutated
from readers import READERS, every_record

from nangrid.records.errors import InputError

BYTES = 300_000
"""Bytes of damaged records per run; bench/fuzz_records.py reads millions."""
MEMORY = 600 * 2**20


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return every_record(tmp_path_factory.mktemp("grid"))


@pytest.mark.parametrize("name", READERS)
def test_damage_ends_in_an_error_that_names_the_file(name: str, cell: Path) -> None:
    path, generator = cell / name, random.Random(name)
    sound, read = path.read_bytes(), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        while read < BYTES / len(READERS):
            content = mutated(sound, generator)
            read += len(content)
            path.write_bytes(content)
            try:
                READERS[name](cell)
            except InputError as error:
                assert str(cell) in str(error) and "\n" not in str(error), error
    finally:
        path.write_bytes(sound)
    READERS[name](cell)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
