"""Draws cases from a seed: architecture, fault, place, dtype, step, form of the loop and optimizer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from case import NO_NAME, Case, Declared, Loop, marked_lines, origin
from generated.architectures import BLOCKS, CLASSES, Network
from generated.faults import FAULTS, FaultSpec
from generated.rarer_faults import RARER_FAULTS
from torch import Tensor

FORMS = ("closure", "batch", "accumulate", "clip", "checkpoint", "scheduler", "scaler")
FOLLOWED = 0.5
"""The share of loops over batches that nangrid follows by `watch.batches`."""
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-4),
    "adamw-loop": lambda p: torch.optim.AdamW(p, lr=1e-3, eps=1e-4, foreach=False),
}
LAST_STEP = 6


@dataclass(frozen=True)
class Draw:
    """One point of the space of cases."""

    seed: int
    architecture: str
    fault: FaultSpec | None
    """None: the data holds NaN, or the weights do."""
    corrupt: str
    """`data` or `weights` without a fault, else empty."""
    depth: int
    place: int
    twins: bool
    """Whether the other blocks hold the same layer at a harmless level."""
    dtype: str
    step: int
    form: str
    optimizer: str
    followed: bool

    @property
    def name(self) -> str:
        what = self.fault.layer.__name__ if self.fault else f"{self.corrupt.title()}OfNaN"
        loop = self.form + "_batches" * self.followed
        return f"seed{self.seed}_{what}_{self.architecture}{self.place}_{self.dtype}_step{self.step}_{loop}"


def generate(seed: int, count: int) -> dict[str, Case]:
    """Name -> case; every fault is drawn about equally often."""
    generator = random.Random(seed)
    cases: dict[str, Case] = {}
    for number in range(count):
        drawn = draw(generator, seed, number)
        name = f"{drawn.name}_{number:03d}"
        cases[name] = replace(case_of(drawn), name=name)
    return cases


def draw(generator: random.Random, seed: int, number: int) -> Draw:
    """The fault follows from the number, everything else is random."""
    kinds: list[FaultSpec | str] = [*FAULTS, *RARER_FAULTS, "data", "weights"]
    kind = kinds[number % len(kinds)]
    depth = generator.randint(1, 5)
    fault = kind if isinstance(kind, FaultSpec) else None
    dtype = generator.choice(fault.dtypes if fault else ("float32", "bfloat16"))
    form = generator.choice(FORMS if _scales(fault, dtype) else FORMS[:-1])
    return Draw(
        seed,
        generator.choice(list(BLOCKS)),
        fault,
        "" if fault else str(kind),
        depth,
        generator.randrange(depth),
        generator.random() < 0.5,
        dtype,
        generator.randrange(LAST_STEP),
        form,
        generator.choice(list(OPTIMIZERS)),
        form != "closure" and generator.random() < FOLLOWED,
    )


def _scales(fault: FaultSpec | None, dtype: str) -> bool:
    """Whether a GradScaler fits: it refuses float16 gradients, and skips a step with bad ones instead of failing."""
    return dtype in ("float32", "autocast") and (fault is None or fault.clock == "loss")


def case_of(drawn: Draw) -> Case:
    """The case, with its truth by construction."""

    def build(fails: bool = True) -> Loop:
        return Script(drawn, fails).loop()

    source = drawn.fault.layer if drawn.fault else Network
    build.__doc__ = source.__doc__ if drawn.fault else f"The {drawn.corrupt} hold NaN at one step."
    marked = marked_lines(source)
    origins = tuple(declared.origin(marked) for declared in _origins(drawn))
    onset = (drawn.step, drawn.fault.clock if drawn.fault else "loss")
    pattern = drawn.fault.layer.__name__ if drawn.fault else f"{drawn.corrupt} of NaN"
    mechanisms = tuple(_mechanism(drawn).split())
    return Case(
        drawn.name,
        f"seed {drawn.seed}",
        pattern,
        build,
        LAST_STEP + 2,
        onset,
        origins,
        mechanisms,
        "generated",
        drawn.form + ", watch.batches" * drawn.followed,
    )


def _origins(drawn: Draw) -> Iterator[Declared]:
    if drawn.fault is None:
        # The stem's product reads both the data and the weights; whether the bias is a part of it is torch's choice.
        yield origin("input", "nonfinite_input", "addmm mm", "stem", node="*")
        return
    module = f"blocks.{drawn.place}.{BLOCKS[drawn.architecture][1]}"
    for declared in drawn.fault.origins:
        yield replace(declared, module=module)


def _mechanism(drawn: Draw) -> str:
    if drawn.fault is not None:
        return drawn.fault.mechanism
    if drawn.corrupt == "data":
        return "nonfinite-data"
    # What a script writes into trained weights is no known mechanism.
    return "uninitialised-parameter" if drawn.step == 0 else NO_NAME


class Script:
    """The training script of a draw."""

    def __init__(self, drawn: Draw, fails: bool = True) -> None:
        torch.manual_seed(1000 * drawn.seed + hash_of(drawn.name))
        self.drawn, self.fails = drawn, fails
        faults = [
            drawn.fault.layer() if drawn.fault and (drawn.twins or i == drawn.place) else None
            for i in range(drawn.depth)
        ]
        self.model = Network(drawn.architecture, faults, drawn.form == "checkpoint").to(self.storage)
        self.micro_batches = 2 if drawn.form == "accumulate" else 1
        self.scaler = torch.amp.GradScaler("cpu", init_scale=16.0) if drawn.form == "scaler" else None
        calls = (LAST_STEP + 2) * self.micro_batches
        self.batches = [self._batch(call) for call in range(calls)]
        if drawn.corrupt == "weights" and drawn.step == 0:
            self._corrupt_weights()

    @property
    def storage(self) -> torch.dtype:
        return torch.float32 if self.drawn.dtype == "autocast" else getattr(torch, self.drawn.dtype)

    def loop(self) -> Loop:
        optimizer = OPTIMIZERS[self.drawn.optimizer](self.model.parameters())
        scheduled = self.drawn.form == "scheduler"
        return Loop(
            self.model,
            optimizer,
            self._closure,
            self._after,
            batches=None if self.drawn.form == "closure" else self.batches,
            clip=1.0 if self.drawn.form == "clip" else None,
            accumulate=self.micro_batches,
            scheduler=torch.optim.lr_scheduler.LinearLR(optimizer, 0.5) if scheduled else None,
            scaler=self.scaler,
            followed=self.drawn.followed,
        )

    def _batch(self, call: int) -> tuple[Tensor, Tensor, list[float]]:
        drawn = self.drawn
        x = torch.randn(3, 4, 5).to(self.storage)
        levels = [drawn.fault.safe if drawn.fault else 1.0] * drawn.depth
        last_of_step = call == (drawn.step + 1) * self.micro_batches - 1
        if self.fails and last_of_step and drawn.fault:
            half = drawn.dtype == "float16" and drawn.fault.fatal_in_half is not None
            fatal = drawn.fault.fatal_in_half if half else drawn.fault.fatal
            levels[drawn.place] = drawn.fault.fatal if fatal is None else fatal
        if self.fails and last_of_step and drawn.corrupt == "data":
            x[1, 2, 3] = float("nan")
        return x, torch.randint(0, CLASSES, (3,)), levels

    def _closure(self, call: int) -> Callable[..., Tensor]:
        def run(batch: tuple[Tensor, Tensor, list[float]] | None = None) -> Tensor:
            mixed = self.drawn.dtype == "autocast"
            with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
                loss: Tensor = self.model(*(batch or self.batches[call]))
            mean = loss / self.micro_batches
            (mean if self.scaler is None else self.scaler.scale(mean)).backward()
            return loss

        return run

    def _after(self, step: int) -> None:
        if self.drawn.corrupt == "weights" and step == self.drawn.step - 1:
            self._corrupt_weights()

    def _corrupt_weights(self) -> None:
        if self.fails:
            with torch.no_grad():
                self.model.stem.weight[2, 1] = float("nan")


def hash_of(text: str) -> int:
    """A number that is the same in every process."""
    return sum(ord(letter) * (i + 1) for i, letter in enumerate(text))


def generate_healthy(seed: int, count: int) -> dict[str, Case]:
    """The scripts of drawn cases in which nothing becomes fatal; their masks still hold infinities."""
    cases = {}
    for name, case in generate(seed, count).items():
        build = _harmless(case)
        cases[f"healthy_{name}"] = replace(
            case, name=f"healthy_{name}", build=build, onset=None, origins=(), mechanisms=(), part="healthy"
        )
    return cases


def _harmless(case: Case) -> Callable[..., Loop]:
    build = case.build

    def harmless() -> Loop:
        return build(fails=False)

    harmless.__doc__ = "The script of a generated case without its fatal level."
    return harmless
