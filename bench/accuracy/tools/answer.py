"""What a tool says about a failing run; every tool fills the fields that it claims to know."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from case import Case, Look, Loop


@dataclass
class Answer:
    """Empty where the tool said nothing."""

    step: int | None = None
    clock: str = ""
    phase: str = ""
    kind: str = ""
    op: str = ""
    node: str = ""
    module: str | None = None
    line: str = ""
    mechanism: str = ""
    where: str = ""
    """For tools that know modules alone: whether an output, an input or a gradient was non-finite."""
    losses: list[float] = field(default_factory=list)
    parameters: str = ""
    """A hash of the parameters' bits at the end."""
    reproduced: bool | None = None
    origin_grade: str = ""
    mechanism_grade: str = ""
    crashed: str = ""

    def record(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value not in ("", None, [])}


class Counting(Look):
    """A bare run that a tool watches from outside."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.subject: Loop = case.build()

    def run(self) -> None:
        self.subject.run(self.case.horizon, self)
