"""Declares a case: a small training script that fails, and what is true about its failure.

    @case("ID_20", "log(softmax)", (5, "loss"), origin("forward", "divide_by_zero", "log"), mechanism="log-of-zero")
    def softmax_regression_raw_pixels() -> Loop:
        ...  # its docstring is the reason, in words

The mechanism is the name whose signature and reason in docs/reference/mechanisms.md fit the script, or none. Two names
stand side by side only where both are right; a docstring then says why. A name is argued from the script, never taken
from an answer. Where a tensor is non-finite before the step, the operation is the first that reads its elements; a view
reads none.

The line of an origin is not written as a number: it is the line of the case's own source that ends in `# DEFECT`.
A second reading of the same defect may name the line that ends in `# ALSO`. A builder with a parameter `fixed` also
builds the corrected script, which must stay finite.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MARKS = ("DEFECT", "ALSO")
NO_NAME = ""
"""The mechanism of a failure that none of nangrid's names fits: `unknown` is then the right word."""


@dataclass(frozen=True)
class Origin:
    """One right answer to the question where a failure arose; all its fields hold together."""

    phase: str
    kinds: tuple[str, ...]
    ops: tuple[str, ...]
    """Globs over the ATen name without overload."""
    module: str
    """Dotted name of the innermost module; empty outside of all modules, and for the root."""
    lines: tuple[str, ...]
    """Globs over `file.py:123`."""
    nodes: tuple[str, ...] = ()
    """Globs over the autograd node of the operation, which anomaly mode names."""
    first_nan: bool = False
    """Whether this is the first NaN, made of infinities that the defect produced just before."""

    def accepts_op(self, op: str | None) -> bool:
        return any(fnmatchcase(base_op(op), pattern) for pattern in self.ops)

    def accepts_node(self, node: str | None) -> bool:
        return bool(node) and any(fnmatchcase(str(node), pattern) for pattern in self.nodes)

    def accepts_line(self, line: str | None) -> bool:
        return bool(line) and any(fnmatchcase(str(line), pattern) for pattern in self.lines)

    def __str__(self) -> str:
        place = f"{self.module or '(no module)'} at {'|'.join(self.lines)}"
        return f"{self.phase} {'|'.join(self.kinds)} {'|'.join(self.ops)} in {place}"


@dataclass
class Loop:
    """A plain training loop, which a tool may watch. It checks nothing itself.

    `closure(call)` is the closure of one micro-batch; with `batches` it takes the batch. `after(step)` runs after
    each optimizer step.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    closure: Callable[[int], Callable[..., Tensor]]
    after: Callable[[int], object] = lambda step: None
    batches: Sequence[Any] | None = None
    clip: float | None = None
    accumulate: int = 1
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    scaler: torch.amp.GradScaler | None = None
    """The closure scales its loss with it."""
    followed: bool = False
    """Whether nangrid follows the loop by `watch.batches`, instead of calling the closure by `watch.step`."""

    def arguments(self, call: int) -> tuple[Any, ...]:
        """What the closure of a micro-batch is called with."""
        return () if self.batches is None else (self.batches[call % len(self.batches)],)

    def run(self, steps: int, look: Look) -> None:
        """Train, and let `look` see each stage of a step."""
        for step in range(steps):
            look.begin(step)
            self.optimizer.zero_grad()
            for call in range(step * self.accumulate, (step + 1) * self.accumulate):
                look.loss(self.closure(call)(*self.arguments(call)))
            self.unscale()
            look.gradients()
            self.update()
            look.updated()
            self.after(step)

    def unscale(self) -> None:
        """Take the scale out of the gradients, if there is one."""
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)

    def update(self) -> None:
        """Clip, and step optimizer, scaler and scheduler."""
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()


class Look:
    """Sees the stages of a bare loop, and counts its steps; the default does no more."""

    step = -1

    def begin(self, step: int) -> None:
        self.step = step

    def loss(self, loss: Tensor) -> None:
        """Called after the backward pass of each micro-batch."""

    def gradients(self) -> None:
        """Called before clipping."""

    def updated(self) -> None:
        """Called after the optimizer step."""


@dataclass(frozen=True)
class Case:
    """A failing script and the truth about it; without an onset it is a healthy one."""

    name: str
    source: str
    """The published bug, or the thread, that it stands for."""
    pattern: str
    build: Callable[..., Loop]
    horizon: int
    onset: tuple[int, str] | None
    """Step and clock."""
    origins: tuple[Origin, ...] = ()
    """The first is the strict one: finite operands, a non-finite result. Others are defensible readings."""
    mechanisms: tuple[str, ...] = ()
    part: str = ""
    form: str = ""
    """What kind of loop it is; empty for a script written by hand."""

    @property
    def reason(self) -> str:
        return " ".join((self.build.__doc__ or "").split())

    @property
    def has_fix(self) -> bool:
        return "fixed" in inspect.signature(self.build).parameters


CASES: dict[str, Case] = {}


@dataclass(frozen=True)
class Declared:
    """An origin whose line is still a mark."""

    phase: str
    kinds: str
    ops: str
    module: str
    node: str
    at: str
    first_nan: bool

    def origin(self, marked: dict[str, tuple[str, ...]]) -> Origin:
        ops = tuple(self.ops.split())
        return Origin(
            self.phase,
            tuple(self.kinds.split()),
            ops,
            self.module,
            marked.get(self.at, (self.at,)),
            tuple(self.node.split()) or tuple(node_of(op) for op in ops),
            self.first_nan,
        )


def origin(
    phase: str, kinds: str, ops: str, module: str = "", *, node: str = "", at: str = "DEFECT", first_nan: bool = False
) -> Declared:
    """Declare an origin; `kinds`, `ops` and `node` may hold several words. `at`: a mark, or a glob over lines."""
    return Declared(phase, kinds, ops, module, node, at, first_nan)


def case(
    source: str,
    pattern: str,
    onset: tuple[int, str],
    *origins: Declared,
    mechanism: str = NO_NAME,
    horizon: int | None = None,
) -> Callable[[Callable[..., Loop]], Callable[..., Loop]]:
    """Register a failing script; it may go on for three steps after its onset."""

    def register(build: Callable[..., Loop]) -> Callable[..., Loop]:
        marked = marked_lines(build)
        add(
            Case(
                build.__name__,
                source,
                pattern,
                build,
                onset[0] + 4 if horizon is None else horizon,
                onset,
                tuple(declared.origin(marked) for declared in origins),
                tuple(mechanism.split()),
                Path(inspect.getfile(build)).parent.name,
            )
        )
        return build

    return register


def healthy(source: str, pattern: str, horizon: int = 5) -> Callable[[Callable[..., Loop]], Callable[..., Loop]]:
    """Register a script that only looks alarming: no clock may trip."""

    def register(build: Callable[..., Loop]) -> Callable[..., Loop]:
        folder = Path(inspect.getfile(build)).parent.name
        add(Case(build.__name__, source, pattern, build, horizon, None, part=folder))
        return build

    return register


def add(new: Case) -> None:
    """Register a case under its name."""
    if new.name in CASES:
        raise ValueError(f"two cases are called {new.name}")
    CASES[new.name] = new


def marked_lines(source: Callable[..., Any]) -> dict[str, tuple[str, ...]]:
    """Mark -> the lines of a function's or class's source that end in it."""
    lines, first = inspect.getsourcelines(source)
    name = Path(inspect.getfile(source)).name
    return {
        mark: tuple(f"{name}:{first + i}" for i, line in enumerate(lines) if line.rstrip().endswith(f"# {mark}"))
        for mark in MARKS
    }


def node_of(op: str) -> str:
    """The autograd node: log -> LogBackward*, _softmax -> SoftmaxBackward*, log1p -> Log1PBackward*."""
    words = "".join(part.capitalize() for part in op.strip("_").split("_"))
    return re.sub(r"\d[a-z]", lambda found: found[0].upper(), words) + "Backward*"


def base_op(op: str | None) -> str:
    """'aten.add_.Tensor', 'aten::add_' and 'torch.ops.aten.add_.Tensor' are all 'add'."""
    name = (op or "").replace("::", ".").removeprefix("torch.ops.").removeprefix("aten.")
    return name.split(".")[0].strip().rstrip("_")
