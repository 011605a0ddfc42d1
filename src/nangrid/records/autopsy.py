"""Defines `autopsy.json`, the record of a replay: where a non-finite value came from, and by which mechanism."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nangrid.records.atomic import write_bytes
from nangrid.records.codec import encode
from nangrid.records.reader import read_json
from nangrid.records.safety.names import is_override

SCHEMA = 4
AUTOPSY = "autopsy.json"
SCRIPT, OPERANDS = "operation.py", "operands.safetensors"
"""The failing operation alone, and the operands on which it runs."""


@dataclass(frozen=True)
class TensorRecord:
    """One operand of the origin: a tensor, or a number, whose `dtype` is `int` or `float`."""

    name: str
    shape: list[int]
    dtype: str
    absmax: float
    """Over the finite elements."""
    n_nan: int
    n_inf: int
    at: float | None = None
    """Elementwise operations only: the element from which the output's first non-finite element was computed."""


@dataclass(frozen=True)
class OutputRecord:
    """The output of the origin."""

    shape: list[int]
    dtype: str
    n_nan: int
    n_inf: int
    first_index: list[int]


@dataclass(frozen=True)
class TokenRecord:
    """A token at the origin: its row and position in the micro-batch, and whether the run added it."""

    row: int
    position: int
    id: int
    text: str
    is_new: bool


@dataclass(frozen=True)
class Suggestion:
    """One thing to try against a mechanism."""

    advice: str
    """In words; the override itself where there is one."""
    override: str | None = None
    """`key=value` for the command line; None if the advice cannot be typed as one."""

    def __post_init__(self) -> None:
        """Check that the override sets a level and does nothing else, because it is offered for copying."""
        if self.override is not None and not is_override(self.override):
            raise ValueError(f"suggestions hold {self.override!r:.60}, which sets no level")


@dataclass(frozen=True)
class Trial:
    """The failing step, or its failing operation alone, computed in another way."""

    change: str
    """What was changed, in words."""
    finite: bool


@dataclass(frozen=True)
class Autopsy:
    """The origin of a non-finite value, the tokens and parameters involved, and the mechanism."""

    step: int
    clock: str
    phase: str
    """input, forward, backward or optimizer; `unknown` if the replay stayed finite."""
    kind: str
    """IEEE 754: overflow, divide_by_zero, invalid; or nonfinite_input."""
    op: str
    """The operation; of a tensor that was non-finite before the step, the first that read it."""
    module: str
    source: str
    node: str
    """The autograd node, if the operation belongs to the backward pass."""
    micro_batch: int
    dtype: str
    dtype_max: float
    inputs: list[TensorRecord]
    output: OutputRecord | None
    path: list[str]
    """The operations from the origin to the value that tripped the clock."""
    tokens: list[TokenRecord]
    parameters: list[str]
    """Parameters whose gradient or value is non-finite, before clipping."""
    mechanism: str
    explanation: str
    evidence: list[str]
    suggestions: list[Suggestion]
    reproduced: bool
    """Whether the replay tripped the same clock with the same bits as the live step."""
    untrained: bool | None
    """Whether the same batch fails through the initial parameters too; None if not tried."""
    preexisting: str = ""
    """The tensor that was non-finite before it was read, such as `parameter 1.weight`; empty if none was."""
    cures: list[Trial] = field(default_factory=list)
    """Changes of the failing operation that were tried on this step."""
    variants: list[Trial] = field(default_factory=list)
    """Other ways to compute this step, tried where the mechanism alone explains little."""
    verdict: str = ""
    """What the variants show, in one sentence, which the explanation ends with; empty if nothing."""
    alone: bool = False
    """Whether `operation.py`, next to the autopsy, makes the failing operation fail alone."""
    rank: int | None = None
    """The rank on which the value arose; None if the process trained alone, or if it arose between the ranks."""
    by_communication: dict[str, list[str]] = field(default_factory=dict)
    """Per rank, the parameters whose gradients are non-finite, but finite in the rank's own computation."""
    ablated: bool | None = None
    """Whether the clock no longer trips once zeros replace what the origin made non-finite; None if not tried."""
    rivals: int | None = None
    """Number of other operations for which `ablated` needed zeros as well, because each fails the step by itself."""
    schema: int = SCHEMA


def write_autopsy(directory: Path, autopsy: Autopsy) -> None:
    """Write `autopsy.json` atomically."""
    write_bytes(directory / AUTOPSY, json.dumps(encode(autopsy), indent=1).encode())


def read_autopsy(directory: Path) -> Autopsy | None:
    """The autopsy in a directory, or None if it has none; RecordError if it cannot be read."""
    return read_json(directory / AUTOPSY, Autopsy, SCHEMA, {1: _from_schema_1, 2: _from_schema_2, 3: _from_schema_3})


def _from_schema_1(autopsy: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 mixed overrides with advice, and named a pre-existing tensor in the first line of the evidence only."""
    first = autopsy["evidence"][0] if autopsy["evidence"] else ""
    name, marker, rest = first.partition(" was non-finite before it was read")
    suggestions = [
        {"advice": text, "override": text if re.fullmatch(r"[\w.]+=[\w.-]+", text) and is_override(text) else None}
        for text in autopsy["suggestions"]
    ]
    return autopsy | {"suggestions": suggestions, "preexisting": name if marker and not rest else ""}


def _from_schema_2(autopsy: dict[str, Any]) -> dict[str, Any]:
    """Schema 2 had no experiments."""
    return autopsy | {"cures": [], "variants": [], "verdict": "", "alone": False}


def _from_schema_3(autopsy: dict[str, Any]) -> dict[str, Any]:
    """Schema 3 knew no ranks and no ablation."""
    return autopsy | {"by_communication": {}}
