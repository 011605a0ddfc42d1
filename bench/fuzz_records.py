"""Reads millions of bytes of damaged records through every reader, and counts how each attempt ends.

    python bench/fuzz_records.py [MILLIONS_OF_BYTES]

A sound cell's records are damaged by a seeded generator: random bytes, truncations, flipped bits, deep nesting, huge
numbers, and odd values in place of what a record says. Each attempt must be read or end in an error that names the
file. Afterwards the memory that the process ever took is compared with what it took before.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nangrid.integrations.torch_file import load_pickle
from nangrid.records.errors import InputError
from nangrid.watch.state.module_state import ModuleState
from nangrid.watch.state.random_state import random_states
from nangrid.watch.state.snapshot import MicroBatch, Snapshot

TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS / "security"), str(TESTS / "grid")]
from mutations import mutated  # noqa: E402
from readers import READERS, every_record  # noqa: E402

RESULT = Path(__file__).parent / "results" / "fuzz_records.md"
Reader = Callable[[Path], Any]


def write_states(cell: Path) -> dict[str, Reader]:
    """A snapshot and a checkpoint's file, and their readers."""
    tensors = {"w": torch.ones(4, 4)}
    batch = MicroBatch({"input_ids": torch.ones(2, 3, dtype=torch.long)})
    snapshot = Snapshot(
        step=1, parameters=tensors, state={"w": {"exp_avg": torch.ones(4, 4)}}, groups=[{"lr": 1e-3}], scaler={},
        module_state=ModuleState({"b": torch.ones(2)}, {"": True}, {}), rng=random_states(), micro_batches=[batch],
        training=True, clock="loss", outcome={"loss": "0"}, losses=[1.0], initial=tensors,
    )  # fmt: skip
    snapshot.save(cell / "state")
    torch.save({"a": torch.ones(3), "b": [1, 2.0, "x"]}, cell / "optimizer.pt")
    load: Reader = lambda cell: Snapshot.load(cell / "state")  # noqa: E731
    return {
        "state/snapshot.json": load,
        "state/snapshot.safetensors": load,
        "optimizer.pt": lambda cell: load_pickle(cell / "optimizer.pt"),
    }


def fuzz(cell: Path, name: str, reader: Reader, budget: int) -> Counter[str]:
    """Outcomes of reading `budget` bytes of damaged copies of one file."""
    path, generator, counts = cell / name, random.Random(name), Counter[str]()
    sound = path.read_bytes()
    while counts["bytes"] < budget:
        content = mutated(sound, generator)
        counts["bytes"] += len(content)
        counts["copies"] += 1
        path.write_bytes(content)
        try:
            reader(cell)
            counts["read"] += 1
        except InputError as error:
            counts["named" if str(path.parent) in str(error) else "not named"] += 1
        except Exception as error:
            counts["traceback"] += 1
            print(f"{name}: {type(error).__name__}: {error}"[:300], file=sys.stderr)
    path.write_bytes(sound)
    return counts


def main() -> None:
    """Write the table."""
    budget = int(float(sys.argv[1] if len(sys.argv) > 1 else 2) * 10**6)
    with tempfile.TemporaryDirectory() as folder:
        cell = every_record(Path(folder))
        readers = READERS | write_states(cell)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        counts = {name: fuzz(cell, name, reader, budget // len(readers) + 1) for name, reader in readers.items()}
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    columns = ("copies", "bytes", "read", "named", "not named", "traceback")
    counts["all"] = sum(counts.values(), Counter[str]())
    rows = [f"| {name} | {' | '.join(str(c[key]) for key in columns)} |" for name, c in counts.items()]
    head = [f"`python bench/fuzz_records.py {budget / 10**6:g}`: damaged copies by outcome.", ""]
    head += [f"| file | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    text = "\n".join([*head, *rows, "", f"Memory: at most {more:.0f} MiB more than before the first copy.", ""])
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
