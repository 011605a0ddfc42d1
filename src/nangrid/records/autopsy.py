"""What was found when a failing step was run again? `autopsy.json` (DESIGN: the record of a replay)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nangrid.records.atomic import write_bytes
from nangrid.records.codec import decode, encode
from nangrid.records.errors import RecordError

SCHEMA = 1
AUTOPSY = "autopsy.json"
READ_NONFINITE = " was non-finite before it was read"
"""Follows the name of a tensor in the first line of the evidence."""


@dataclass(frozen=True)
class TensorRecord:
    """One operand; `absmax` is over its finite elements."""

    name: str
    shape: list[int]
    dtype: str
    absmax: float
    n_nan: int
    n_inf: int
    at: float | None = None
    """Of an elementwise operation: its element that the output's first non-finite one was made of."""


@dataclass(frozen=True)
class OutputRecord:
    """What the origin wrote."""

    shape: list[int]
    dtype: str
    n_nan: int
    n_inf: int
    first_index: list[int]


@dataclass(frozen=True)
class TokenRecord:
    """A token at the origin."""

    row: int
    position: int
    id: int
    text: str
    is_new: bool


@dataclass(frozen=True)
class Autopsy:
    """The origin of a non-finite value, who is involved, and the mechanism."""

    step: int
    clock: str
    phase: str
    """input, forward, backward or optimizer; `unknown` if the replay met nothing."""
    kind: str
    """IEEE 754: overflow, divide_by_zero, invalid; or nonfinite_input."""
    op: str
    module: str
    source: str
    node: str
    """The autograd node of a backward operation."""
    micro_batch: int
    dtype: str
    dtype_max: float
    inputs: list[TensorRecord]
    output: OutputRecord | None
    path: list[str]
    """The operations from the origin to the value that rang the clock."""
    tokens: list[TokenRecord]
    parameters: list[str]
    """Those whose gradient or value is non-finite, before clipping."""
    mechanism: str
    explanation: str
    evidence: list[str]
    suggestions: list[str]
    reproduced: bool
    untrained: bool | None
    schema: int = SCHEMA


def write_autopsy(directory: Path, autopsy: Autopsy) -> None:
    """Write `autopsy.json` atomically."""
    write_bytes(directory / AUTOPSY, json.dumps(encode(autopsy), indent=1).encode())


def read_autopsy(directory: Path) -> Autopsy | None:
    """The autopsy kept in a directory, or None; RecordError if it is corrupt or of another schema."""
    path = directory / AUTOPSY
    if not path.exists():
        return None
    try:
        read: Any = json.loads(path.read_text())
        if read.get("schema") != SCHEMA:
            raise ValueError(f"schema {read.get('schema')} is not {SCHEMA}")
        autopsy: Autopsy = decode(Autopsy, read)
    except (ValueError, AttributeError) as error:
        raise RecordError(f"{path} cannot be trusted: {error}.") from error
    return autopsy
