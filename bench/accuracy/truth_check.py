"""Proves what the cases declare, without nangrid.

onset     a bare loop with nothing but isfinite on loss, gradients, parameters and optimizer state first finds something
          at the declared step and clock
origin    at that step, an operation on the declared line, in the declared module, has finite operands and a non-finite
          result of the declared kind (a second reading: also, or it makes the first NaN)
cause     the step runs again with zeros (or with ones, for a divisor) instead of what arises on the declared lines, and
          it is finite
no other  if something else arose earlier: with zeros instead of that, and of that alone, the step fails as before
control   the corrected script stays finite, and so does every healthy one
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from case import Case, Look, Loop, Origin
from observer import Finding, Observer, is_bad, observing
from torch import Tensor, nn


@dataclass
class Seen:
    """What a bare loop saw up to its onset."""

    onset: tuple[int, str] | None = None
    losses: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """The tensors that were non-finite at the onset."""
    observer: Observer | None = None


class Stop(Exception):
    """Ends a bare loop at its onset."""


class Clocks(Look):
    """Looks for the onset; one step may run under an observer."""

    def __init__(self, loop: Loop, observed: int, observe: Callable[[nn.Module], Observer]) -> None:
        self.loop = loop
        self.observed = observed
        self.observe = observe
        self.seen = Seen()
        self.stack = ExitStack()

    def begin(self, step: int) -> None:
        super().begin(step)
        self.stack.close()
        if step == self.observed:
            self.seen.observer = self.observe(self.loop.model)
            self.stack.enter_context(observing(self.seen.observer))

    def loss(self, loss: Tensor) -> None:
        self.seen.losses.append(float(loss.detach()))
        self._check("loss", {"loss": loss})

    def gradients(self) -> None:
        self._check("gradient", {name: p.grad for name, p in self.loop.model.named_parameters()})
        if self.seen.observer is not None:
            self.seen.observer.optimizing = True

    def updated(self) -> None:
        self._check("parameter", dict(self.loop.model.named_parameters()))
        states = self.loop.optimizer.state.values()
        self._check("optimizer_state", {key: value for state in states for key, value in state.items()})
        self.stack.close()

    def _check(self, clock: str, tensors: dict[str, Tensor | None]) -> None:
        bad = [name for name, value in tensors.items() if is_bad(value)]
        if bad:
            self.seen.onset, self.seen.names = (self.step, clock), bad
            raise Stop


def watch(loop: Loop, horizon: int, observed: int = -1, observe: Callable[[nn.Module], Observer] = Observer) -> Seen:
    """Train up to the onset, with step `observed` under an observer."""
    clocks = Clocks(loop, observed, observe)
    with suppress(Stop), clocks.stack:
        loop.run(horizon, clocks)
    return clocks.seen


def check(case: Case) -> tuple[list[str], list[str]]:
    """What is wrong with a case's declaration, and what was measured."""
    bare = watch(case.build(), case.horizon)
    told = [f"losses {[f'{loss:.3g}' for loss in bare.losses[-6:]]}, onset {bare.onset}: {bare.names[:4]}"]
    if bare.onset != case.onset:
        return [f"the onset is {bare.onset}, declared {case.onset}"], told
    wrong = _control(case)
    if bare.onset is None:
        return wrong, told
    seen = watch(case.build(), bare.onset[0] + 1, bare.onset[0])
    assert seen.observer is not None
    told += [f"arose: {finding}" for finding in seen.observer.findings[:6]]
    if seen.onset != bare.onset:
        wrong.append(f"under the observer the onset is {seen.onset}")
    wrong += [
        f"nothing arises as declared: {origin}"
        for origin in case.origins
        if not any(accepts(origin, finding) for finding in seen.observer.findings)
    ]
    return wrong + _not_the_cause(case) + _another_cause(case, seen.observer.findings), told


def accepts(origin: Origin, finding: Finding) -> bool:
    """Whether a finding is this origin."""
    return (
        finding.phase == origin.phase
        and finding.kind in origin.kinds
        and origin.accepts_op(finding.op)
        and origin.accepts_line(finding.line)
        and (origin.module == finding.module or finding.phase == "optimizer")
        and (finding.strict or origin.first_nan)
        and (origin.phase != "backward" or origin.accepts_node(finding.node))
    )


def _declared(case: Case) -> Callable[[Finding], bool]:
    return lambda finding: any(origin.accepts_line(finding.line) for origin in case.origins)


def _without(case: Case, replaces: Callable[[Finding], bool], filler: float = 0.0) -> Seen:
    assert case.onset is not None
    step = case.onset[0]
    return watch(case.build(), step + 1, step, lambda model: Observer(model, replaces, filler))


def _not_the_cause(case: Case) -> list[str]:
    assert case.onset is not None
    # What has diverged may fail in the same step's gradients, too; a parameter that held NaN before still does.
    later = case.pattern == "divergence" or case.origins[0].phase == "input"
    onsets = []
    for filler in (0.0, 1.0):
        onset = _without(case, _declared(case), filler).onset
        if onset is None or (later and onset != case.onset):
            return []
        onsets.append(onset)
    return [f"with finite numbers on the declared lines it still fails: {onsets}"]


def _another_cause(case: Case, findings: list[Finding]) -> list[str]:
    declared = _declared(case)
    first = next((i for i, finding in enumerate(findings) if accepts(case.origins[0], finding)), 0)
    before = {(finding.phase, finding.line) for finding in findings[:first] if not declared(finding)}
    if not before:
        return []
    onset = _without(case, lambda finding: (finding.phase, finding.line) in before).onset
    return [] if onset == case.onset else [f"without what arose earlier, at {sorted(before)}, the onset is {onset}"]


def _control(case: Case) -> list[str]:
    if not case.has_fix:
        return []
    onset = watch(case.build(fixed=True), case.horizon).onset
    return [] if onset is None else [f"the corrected script fails, too: {onset}"]
